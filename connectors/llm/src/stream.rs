//! A reply on its way to the client.
//!
//! [`open`] brings a call to its first visible piece, within the time for that. From there [`ChatStream`] hands the pieces
//! on, one at a time as they are asked for, and settles the call where it ends: complete, broken off, or dropped, which
//! ends the call at the provider.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::{BoxStream, Stream, StreamExt};

use crate::error::{ErrorKind, LlmError};
use crate::ledger::Outcome;
use crate::provider::{Call, EventStream, Provider};
use crate::router::{Lease, RouteInfo, tokens};
use crate::types::{ChatReply, ChatRequest, Event, Usage};

/// A reply whose first visible piece is there.
pub(crate) struct Opened {
    head: std::vec::IntoIter<Event>,
    tail: EventStream,
}

/// Makes the call and waits for the first piece that a client would see. `limits`: for the first piece of a stream, and
/// for a reply in one piece.
pub(crate) async fn open(
    provider: &dyn Provider,
    call: Call<'_>,
    request: &ChatRequest,
    (first_token, whole): (Duration, Duration),
) -> Result<Opened, LlmError> {
    let (limit, what) = if request.stream {
        (first_token, "no first token")
    } else {
        (whole, "no reply")
    };
    let opening = async {
        let mut tail = provider.chat(call, request).await?;
        let mut head = Vec::new();
        loop {
            match tail.next().await {
                Some(Ok(event)) => {
                    let shown = event.is_shown();
                    head.push(event);
                    if shown {
                        let head = head.into_iter();
                        return Ok(Opened { head, tail });
                    }
                }
                Some(Err(error)) => return Err(error),
                None => {
                    return Err(LlmError::new(
                        ErrorKind::StreamBroken,
                        "the provider's reply is empty",
                    ));
                }
            }
        }
    };
    match tokio::time::timeout(limit, opening).await {
        Ok(opened) => opened,
        Err(_) => Err(timed_out(what, limit)),
    }
}

pub(crate) fn timed_out(what: &str, limit: Duration) -> LlmError {
    LlmError::new(
        ErrorKind::Timeout,
        format!("{what} within {} ms (`llm.routing`)", limit.as_millis()),
    )
}

/// The pieces of a reply. Behind the last one comes an [`Event::Usage`] in any case. An error is the last item: something
/// had been shown, so nobody else could take over.
pub struct ChatStream {
    /// How it came about.
    pub info: RouteInfo,
    events: BoxStream<'static, Result<Event, LlmError>>,
}

struct Running {
    head: std::vec::IntoIter<Event>,
    tail: EventStream,
    /// Gone when the call has been settled.
    lease: Option<Lease>,
    silence: Duration,
    usage: Option<Usage>,
    /// About how many tokens have been shown.
    shown: u64,
    /// The reply has come to its end, so what the provider counts is all of it.
    finished: bool,
}

impl ChatStream {
    pub(crate) fn new(opened: Opened, lease: Lease, info: RouteInfo, silence: Duration) -> Self {
        let running = Running {
            head: opened.head,
            tail: opened.tail,
            lease: Some(lease),
            silence,
            usage: None,
            shown: 0,
            finished: false,
        };
        let events = futures::stream::unfold(running, |mut running| async move {
            // Behind its end there is nothing.
            running.lease.as_ref()?;
            let event = running.next().await;
            Some((event, running))
        });
        Self {
            info,
            events: events.boxed(),
        }
    }

    /// A reply that is not on its way from a deployment: one that was kept, or one that somebody listens in on.
    pub fn made(info: RouteInfo, events: BoxStream<'static, Result<Event, LlmError>>) -> Self {
        Self { info, events }
    }

    /// How it came about, and its pieces.
    pub fn into_parts(self) -> (RouteInfo, BoxStream<'static, Result<Event, LlmError>>) {
        (self.info, self.events)
    }

    /// The whole reply.
    pub async fn collect(mut self) -> Result<(ChatReply, RouteInfo), LlmError> {
        let mut reply = ChatReply::default();
        while let Some(event) = self.events.next().await {
            reply.add(&event?);
        }
        Ok((reply, self.info))
    }
}

impl Stream for ChatStream {
    type Item = Result<Event, LlmError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_next_unpin(cx)
    }
}

impl Running {
    async fn next(&mut self) -> Result<Event, LlmError> {
        let next = match self.head.next() {
            Some(event) => Some(Ok(event)),
            None => match tokio::time::timeout(self.silence, self.tail.next()).await {
                Ok(next) => next,
                Err(_) => Some(Err(timed_out("nothing more of the stream", self.silence))),
            },
        };
        match next {
            Some(Ok(event)) => {
                self.count(&event);
                let taken = self.taken();
                if let Some(lease) = &mut self.lease {
                    lease.note(taken);
                }
                Ok(event)
            }
            Some(Err(error)) => {
                self.settle(Outcome::Failed(error.kind));
                Err(error)
            }
            None => {
                let usage = self.taken();
                self.settle(Outcome::Ok);
                Ok(Event::Usage(usage))
            }
        }
    }

    fn count(&mut self, event: &Event) {
        match event {
            Event::Text { text, .. } | Event::Refusal(text) | Event::Reasoning { text, .. } => {
                self.shown += tokens(text);
            }
            Event::ToolCall {
                name, arguments, ..
            } => self.shown += tokens(name.as_deref().unwrap_or_default()) + tokens(arguments),
            Event::Usage(usage) => self.usage = Some(*usage),
            Event::Finish { .. } => self.finished = true,
            Event::Start { .. } => {}
        }
    }

    /// What the provider counted; where it has not (yet), what was shown.
    fn taken(&self) -> Usage {
        let input = self.lease.as_ref().map_or(0, Lease::input_tokens);
        match self.usage {
            // Told in front, with the reply's tokens to follow.
            Some(usage) if !self.finished && usage.output < self.shown => Usage {
                output: self.shown,
                estimated: true,
                ..usage
            },
            Some(usage) => usage,
            None => Usage {
                input,
                output: self.shown,
                estimated: true,
                ..Usage::default()
            },
        }
    }

    fn settle(&mut self, outcome: Outcome) {
        let usage = self.taken();
        if let Some(lease) = self.lease.take() {
            lease.settle(usage, outcome);
        }
    }
}
