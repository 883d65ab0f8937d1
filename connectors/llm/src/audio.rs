//! What is asked of voice models, whatever the provider calls it: text of what was said, and a voice that reads text.
//!
//! Audio is handed on as it came, in both directions; only its length is read, where its format tells it ([`wav_seconds`]).

use bytes::Bytes;
use futures::stream::BoxStream;
use serde_json::{Map, Value};

use crate::error::LlmError;
use crate::types::Usage;

/// Bytes a second of the most compressed speech that is usual: what audio of unknown length may be at most.
const BYTES_A_SECOND_MIN: u64 = 2_000;
/// Bytes a second of speech as it is usually compressed: what audio of unknown length is taken for.
const BYTES_A_SECOND: u64 = 8_000;

/// Audio as it comes. Dropping it ends the call.
pub type AudioStream = BoxStream<'static, Result<Bytes, LlmError>>;

/// A request for the text of what was said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TranscribeRequest {
    pub model: String,
    pub file: Bytes,
    /// Providers go by its ending.
    pub file_name: String,
    pub content_type: Option<String>,
    /// The form's other fields, as they came.
    pub fields: Vec<(String, String)>,
}

impl TranscribeRequest {
    /// How long the audio is at most, as far as can be told.
    pub(crate) fn seconds_at_most(&self) -> u64 {
        let unknown = || (self.file.len() as u64).div_ceil(BYTES_A_SECOND_MIN);
        wav_seconds(&self.file).unwrap_or_else(unknown)
    }

    /// How long it is, and whether that is an estimate.
    pub(crate) fn seconds(&self) -> (u64, bool) {
        match wav_seconds(&self.file) {
            Some(seconds) => (seconds, false),
            None => ((self.file.len() as u64).div_ceil(BYTES_A_SECOND), true),
        }
    }
}

/// The text, in the form that was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TranscribeReply {
    pub body: Bytes,
    pub content_type: String,
    pub usage: Usage,
}

/// A request for a text to be read aloud.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SpeakRequest {
    pub model: String,
    pub input: String,
    /// The other fields, as they came: voice, format, speed.
    pub extra: Map<String, Value>,
}

/// A voice.
pub struct SpeakReply {
    pub content_type: String,
    pub audio: AudioStream,
}

/// How long a WAV file is, in seconds, a begun one counted; `None` for what is no WAV file.
pub fn wav_seconds(file: &[u8]) -> Option<u64> {
    let number = |at: usize| -> Option<u64> {
        let bytes: [u8; 4] = file.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(u64::from(u32::from_le_bytes(bytes)))
    };
    if file.get(..4)? != b"RIFF" || file.get(8..12)? != b"WAVE" {
        return None;
    }
    let mut at = 12;
    let mut rate = None;
    loop {
        let (name, length) = (file.get(at..at + 4)?, number(at + 4)?);
        match name {
            b"fmt " => rate = number(at + 16).filter(|rate| *rate > 0),
            b"data" => {
                // A recorder that streams does not know the length yet and writes the largest number.
                let there = file.len().saturating_sub(at + 8) as u64;
                return Some(length.min(there).div_ceil(rate?));
            }
            _ => {}
        }
        // Chunks begin at even places.
        let length = usize::try_from(length + length % 2).ok()?;
        at = at.checked_add(8)?.checked_add(length)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wav(rate: u32, bytes: usize, told: u32) -> Vec<u8> {
        let mut file = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3e\0\0".to_vec();
        file.extend(rate.to_le_bytes());
        file.extend(b"\x02\0\x10\0LIST\x03\0\0\0abc\0data");
        file.extend(told.to_le_bytes());
        file.resize(file.len() + bytes, 0);
        file
    }

    #[test]
    fn the_length_of_a_wav_file_is_read() {
        assert_eq!(wav_seconds(&wav(32_000, 64_000, 64_000)), Some(2));
        assert_eq!(wav_seconds(&wav(32_000, 64_001, 64_001)), Some(3));
        assert_eq!(wav_seconds(&wav(32_000, 32_000, u32::MAX)), Some(1));
        assert_eq!(wav_seconds(&wav(32_000, 0, 0)), Some(0));
        assert_eq!(wav_seconds(&wav(0, 10, 10)), None);
        assert_eq!(wav_seconds(b"ID3\x04 no wav"), None);
        assert_eq!(wav_seconds(b""), None);
        let whole = wav(32_000, 8, 8);
        for length in 0..whole.len() - 8 {
            assert_eq!(wav_seconds(&whole[..length]), None, "{length}");
        }
    }

    #[test]
    fn audio_of_unknown_length_is_estimated_from_its_bytes() {
        let request = TranscribeRequest {
            file: Bytes::from(vec![0; 16_001]),
            ..TranscribeRequest::default()
        };
        assert_eq!(request.seconds(), (3, true));
        assert_eq!(request.seconds_at_most(), 9);
    }
}
