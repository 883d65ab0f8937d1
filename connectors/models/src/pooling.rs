//! From one vector per token to one vector per text.

use crate::bert::kernels::add_row;
use crate::error::ModelError;

/// How the token vectors of a text become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The mean of all tokens, special ones included.
    #[default]
    Mean,
    /// The first token.
    Cls,
}

impl Pooling {
    /// Pools `tokens` (at least one row of `width` values).
    pub fn pool(self, tokens: &[f32], width: usize) -> Vec<f32> {
        match self {
            Pooling::Cls => tokens[..width].to_vec(),
            Pooling::Mean => {
                let mut sum = vec![0f32; width];
                for row in tokens.chunks_exact(width) {
                    add_row(&mut sum, row);
                }
                let inv = width as f32 / tokens.len() as f32;
                sum.iter_mut().for_each(|v| *v *= inv);
                sum
            }
        }
    }
}

/// Scales `vector` to length 1.
///
/// # Errors
/// When it holds a number that is not finite, or only zeros: neither has a direction.
pub fn normalize(vector: &mut [f32]) -> Result<(), ModelError> {
    let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    if !norm.is_finite() || norm <= 0.0 {
        return Err(ModelError::NotFinite { norm });
    }
    vector.iter_mut().for_each(|v| *v /= norm);
    Ok(())
}
