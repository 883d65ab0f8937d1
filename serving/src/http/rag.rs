//! `POST /api/v1/rag/query`: an answer with citations, as JSON or as server-sent events.
//!
//! The stream drives the work: nothing is spawned, so a client that goes takes its question with it, and one that reads
//! slowly holds it up. What is wrong with a request is told before a stream begins, as a problem; later it is the event
//! `error`, with the same body.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response, sse};
use axum::{Extension, Json};
use futures::{Stream, StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::Instrument;
use va_catalog::store::Principal;
use va_llm::Caller;

use super::documents::drain;
use super::{App, Problem, RequestId};
use crate::conversations::{Profile, about};
use crate::freshness::NotFresh;
use crate::platform::Platform;
use crate::rag::{
    Ask, Asked, Event, Extractive, Generated, Lang, Mode, RagError, RagRequest, Writer, check, run,
};

/// A question with its history; longer bodies are refused.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Events between the writer and the client.
const EVENTS: usize = 16;

/// How often a stream without events shows that it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);

pub async fn query(
    State(app): State<App>,
    Extension(principal): Extension<Principal>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, Problem> {
    let accepts = request
        .headers()
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.contains("text/event-stream"));
    let request: RagRequest = read(request).await?;
    let streamed = request.stream || accepts;
    let ask = request
        .check(principal.viewer())
        .map_err(Problem::invalid)?;
    let mut asked = check(&app.platform, &principal.tenant, ask).await?;
    let (profile, trouble) = Profile::of(&app.platform, &principal).await;
    if let Some(trouble) = trouble {
        // It costs the preference, not the answer.
        tracing::warn!(%trouble, "an answer without its user's preferences");
    }
    asked.ask.language = profile.lang();
    let about = about(Lang::of(&asked.ask.question), None, &profile, None);
    let writer = writer(&app, &principal, &id, &asked.ask, about)?;
    let caller = app.platform.gateway.caller(&principal, &id.0);
    if streamed {
        let events = events(app.platform, caller, asked, writer);
        let beat = KeepAlive::new().interval(HEARTBEAT).text("heartbeat");
        return Ok(Sse::new(events).keep_alive(beat).into_response());
    }
    Ok(Json(whole(&app, &caller, asked, &*writer).await?).into_response())
}

/// Who writes the answer: what was asked for, or else a model where there is one, which is told `about` besides.
pub(super) fn writer(
    app: &App,
    principal: &Principal,
    id: &RequestId,
    ask: &Ask,
    about: Option<String>,
) -> Result<Box<dyn Writer>, Problem> {
    let gateway = &app.platform.gateway;
    let model = ask.model.as_deref().or(gateway.default_model());
    let wanted = match ask.mode {
        Mode::Extractive => false,
        Mode::Generated => true,
        Mode::Auto => ask.model.is_some() || (gateway.is_configured() && model.is_some()),
    };
    if !wanted {
        return Ok(Box::new(Extractive));
    }
    let Some(model) = model.filter(|_| gateway.is_configured()) else {
        return Err(Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no_provider",
            "there is no model to write with: configure one (docs/gateway.md) and name it in `model` or \
             `llm.default_model`, or leave out `mode` and `model` to get sentences of the documents",
        ));
    };
    Ok(Box::new(Generated {
        gateway: gateway.clone(),
        caller: gateway.caller(principal, &id.0),
        model: model.to_owned(),
        about,
    }))
}

/// The body, when it is JSON of a bounded size.
async fn read(request: Request) -> Result<RagRequest, Problem> {
    let mut body = Box::pin(
        request
            .into_body()
            .into_data_stream()
            .map_err(std::io::Error::other),
    );
    let mut bytes = Vec::new();
    while let Some(piece) = body.next().await {
        let piece =
            piece.map_err(|error| Problem::invalid(format!("the body ended early: {error}")))?;
        if bytes.len() + piece.len() > BODY_BYTES_MAX {
            drain(body).await;
            return Err(Problem::too_large(format!(
                "a question with its history may have {BODY_BYTES_MAX} bytes; upload long texts as documents and ask \
                 about them"
            )));
        }
        bytes.extend_from_slice(&piece);
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        let what = if error.is_data() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::BAD_REQUEST };
        let detail = format!(
            "the body is no question: {error}; send {{\"question\": \"...\", \"collection\": \"...\"}}, see /openapi.json"
        );
        Problem::new(what, "invalid_request", detail)
    })
}

/// The whole reply in one object.
async fn whole(
    app: &App,
    caller: &Caller,
    asked: Asked,
    writer: &dyn Writer,
) -> Result<Value, Problem> {
    let (events_tx, mut events) = mpsc::channel(EVENTS);
    let work = async {
        // Dropped at the end, so that the collecting ends too.
        let events_tx = events_tx;
        run(&app.platform, caller, asked, writer, &events_tx).await
    };
    let collect = async {
        let mut reply = json!({"answer": "", "citations": []});
        let mut answer = String::new();
        let mut citations = Vec::new();
        while let Some(event) = events.recv().await {
            match event {
                Event::Start(start) => reply["id"] = start["id"].clone(),
                Event::Delta(text) => answer.push_str(&text),
                Event::Citation(citation) => citations.push(json!(citation)),
                Event::Usage(usage) => reply["usage"] = usage,
                Event::Done(Value::Object(fields)) => {
                    fields
                        .into_iter()
                        .for_each(|(name, value)| reply[name] = value);
                }
                Event::Retrieval(_) | Event::Done(_) => {}
            }
        }
        reply["answer"] = json!(answer);
        reply["citations"] = json!(citations);
        reply
    };
    let (done, reply) = tokio::join!(work, collect);
    done?;
    Ok(reply)
}

/// The events as they come, then `[DONE]`. Polling the stream is what does the work.
fn events(
    platform: Arc<Platform>,
    caller: Caller,
    asked: Asked,
    writer: Box<dyn Writer>,
) -> impl Stream<Item = Result<sse::Event, Infallible>> + Send {
    let (events_tx, events) = mpsc::channel::<Event>(EVENTS);
    let work = async move {
        let stopping = platform.stopping().clone();
        // Dropped with this future's end, so that the receiver ends when it is empty.
        let events_tx = events_tx;
        tokio::select! {
            done = run(&platform, &caller, asked, &*writer, &events_tx) => done.map_err(Problem::from),
            () = stopping.cancelled() => Err(Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "stopping",
                "the server is being stopped; ask again in a moment",
            )),
        }
    };
    let begun = Streamed {
        // The stream is read when the handler has returned; its work is still the request's.
        work: Some(Box::pin(work.in_current_span())),
        events,
        problem: None,
    };
    stream::unfold(begun, |mut streamed| async move {
        let told = streamed.next().await?;
        Some((told, streamed))
    })
    .enumerate()
    .map(|(id, (name, data))| {
        sse::Event::default()
            .id(id.to_string())
            .event(name)
            .data(data.to_string())
    })
    .chain(stream::once(async { sse::Event::default().data("[DONE]") }))
    .map(Ok)
}

type Work = std::pin::Pin<Box<dyn Future<Output = Result<(), Problem>> + Send>>;

/// Work and what it tells, until both have ended.
struct Streamed {
    /// Until it is done.
    work: Option<Work>,
    events: mpsc::Receiver<Event>,
    /// Told last.
    problem: Option<Problem>,
}

impl Streamed {
    /// The next event's name and data; works on while there is none.
    async fn next(&mut self) -> Option<(&'static str, Value)> {
        loop {
            let Some(work) = &mut self.work else {
                // The sender went with the work: what is left, then the end.
                return match self.events.recv().await {
                    Some(event) => Some((event.name(), event.data())),
                    None => self.problem.take().map(|problem| ("error", problem.body())),
                };
            };
            tokio::select! {
                // Events first: a client that reads slowly stops the work when the channel is full.
                biased;
                event = self.events.recv() => if let Some(event) = event {
                    return Some((event.name(), event.data()));
                },
                done = work => {
                    self.work = None;
                    self.problem = done.err();
                }
            }
        }
    }
}

impl From<RagError> for Problem {
    fn from(error: RagError) -> Self {
        let unavailable =
            |code| Self::new(StatusCode::SERVICE_UNAVAILABLE, code, error.to_string());
        match error {
            RagError::Invalid(message) | RagError::NotFresh(NotFresh::Invalid(message)) => {
                Self::invalid(message)
            }
            RagError::Catalog(error) => error.into(),
            RagError::NotFresh(NotFresh::Log(error)) => error.into(),
            RagError::NotFresh(NotFresh::Behind { .. }) => {
                unavailable("not_fresh").after(Duration::from_secs(1))
            }
            RagError::Unavailable(_) => unavailable("unavailable"),
            RagError::Busy(_) => unavailable("busy").after(Duration::from_secs(5)),
            RagError::TimedOut(_) => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "timed_out", error.to_string())
            }
            RagError::Write(_) => Self::internal(error),
            RagError::Gone => unavailable("gone"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts what has been sent; says when the work is given up.
    struct Working {
        sent: Arc<AtomicUsize>,
        given_up: Arc<AtomicUsize>,
    }

    impl Drop for Working {
        fn drop(&mut self) {
            self.given_up.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn streamed(
        count: usize,
        end: Result<(), Problem>,
    ) -> (Streamed, Arc<AtomicUsize>, Arc<AtomicUsize>) {
        let (events_tx, events) = mpsc::channel(EVENTS);
        let (sent, given_up) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let working = Working {
            sent: sent.clone(),
            given_up: given_up.clone(),
        };
        let work = async move {
            let events_tx = events_tx;
            for _ in 0..count {
                let _ = events_tx.send(Event::Delta("x".into())).await;
                working.sent.fetch_add(1, Ordering::SeqCst);
            }
            end
        };
        let streamed = Streamed {
            work: Some(Box::pin(work)),
            events,
            problem: None,
        };
        (streamed, sent, given_up)
    }

    #[tokio::test]
    async fn a_slow_reader_holds_the_writer_up() {
        let (mut streamed, sent, given_up) = streamed(10_000, Ok(()));
        for read in 1..=50 {
            assert_eq!(streamed.next().await.map(|(name, _)| name), Some("delta"));
            assert!(sent.load(Ordering::SeqCst) <= read + EVENTS + 1);
        }
        drop(streamed);
        assert_eq!(
            given_up.load(Ordering::SeqCst),
            1,
            "the work goes with its reader"
        );
    }

    #[tokio::test]
    async fn a_problem_comes_after_what_was_said() {
        let (mut streamed, ..) = streamed(3, Err(Problem::invalid("no more")));
        let mut names = Vec::new();
        while let Some((name, _)) = streamed.next().await {
            names.push(name);
        }
        assert_eq!(names, ["delta", "delta", "delta", "error"]);
    }
}
