//! The way of voices: transcriptions and speech, with the same choice, repetition and reservation as everything else.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, Stream, StreamExt};
use va_catalog::settings::llm::ModelUse;

use super::need::Need;
use super::{Ask, Deployment, Lease, RouteInfo, Router, within};
use crate::audio::{AudioStream, SpeakRequest, TranscribeReply, TranscribeRequest};
use crate::error::{ErrorKind, LlmError};
use crate::ledger::{Caller, Outcome};
use crate::provider::Call;
use crate::stream::timed_out;
use crate::types::Usage;

/// A voice whose first piece is there. It settles its call where it ends: complete, broken off, or dropped.
pub struct SpeechStream {
    /// How it came about.
    pub info: RouteInfo,
    pub content_type: String,
    audio: BoxStream<'static, Result<Bytes, LlmError>>,
}

impl Stream for SpeechStream {
    type Item = Result<Bytes, LlmError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.audio.poll_next_unpin(cx)
    }
}

struct Speaking {
    first: Option<Bytes>,
    rest: AudioStream,
    /// Gone when the call has been settled.
    lease: Option<Lease>,
    usage: Usage,
    silence: Duration,
}

impl Speaking {
    async fn next(&mut self) -> Option<Result<Bytes, LlmError>> {
        // Behind its end there is nothing.
        self.lease.as_ref()?;
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        let next = match tokio::time::timeout(self.silence, self.rest.next()).await {
            Ok(next) => next,
            Err(_) => Some(Err(timed_out("nothing more of the voice", self.silence))),
        };
        let outcome = match &next {
            Some(Ok(_)) => None,
            Some(Err(error)) => Some(Outcome::Failed(error.kind)),
            None => Some(Outcome::Ok),
        };
        if let Some(outcome) = outcome
            && let Some(lease) = self.lease.take()
        {
            lease.settle(self.usage, outcome);
        }
        next
    }
}

impl Router {
    /// Asks for the text of what was said.
    pub async fn transcribe(
        &self,
        caller: &Caller,
        request: &TranscribeRequest,
    ) -> Result<(TranscribeReply, RouteInfo), LlmError> {
        let need = Need {
            model: &request.model,
            used_for: ModelUse::Transcription,
            output_tokens: Some(0),
            audio_seconds: request.seconds_at_most(),
            ..Need::default()
        };
        let ask: Ask<_, _> = |provider, call, request| provider.transcribe(call, request);
        let (reply, lease, info) = self.whole(caller, &need, request, ask).await?;
        lease.settle(reply.usage, Outcome::Ok);
        Ok((reply, info))
    }

    /// Asks for a text to be read aloud.
    pub async fn speak(
        &self,
        caller: &Caller,
        request: &SpeakRequest,
    ) -> Result<SpeechStream, LlmError> {
        let need = Need {
            model: &request.model,
            used_for: ModelUse::Speech,
            output_tokens: Some(0),
            characters: request.input.chars().count() as u64,
            ..Need::default()
        };
        let timeout = self.rules.first_token_timeout;
        let run = |deployment: &Deployment, asked: &str| -> BoxFuture<'static, _> {
            let (provider, model) = (deployment.provider.clone(), deployment.upstream(asked));
            let request = request.clone();
            Box::pin(async move {
                let call = Call {
                    model: &model,
                    output_tokens_max: None,
                };
                let opening = async {
                    let mut reply = provider.speak(call, &request).await?;
                    // Until it is heard, somebody else can still speak.
                    let first = reply.audio.next().await.unwrap_or_else(|| {
                        Err(LlmError::new(
                            ErrorKind::StreamBroken,
                            "the provider's voice is empty",
                        ))
                    })?;
                    Ok((reply, first))
                };
                within(timeout, opening).await
            })
        };
        let ((reply, first), mut lease, info) = self.route(caller, &need, &run).await?;
        // What is read aloud is known, also to a client that goes away.
        let usage = Usage {
            characters: need.characters,
            ..Usage::default()
        };
        lease.note(usage);
        let speaking = Speaking {
            first: Some(first),
            rest: reply.audio,
            lease: Some(lease),
            usage,
            silence: self.rules.timeout,
        };
        let audio = futures::stream::unfold(speaking, |mut speaking| async move {
            let piece = speaking.next().await?;
            Some((piece, speaking))
        });
        Ok(SpeechStream {
            info,
            content_type: reply.content_type,
            audio: audio.boxed(),
        })
    }
}
