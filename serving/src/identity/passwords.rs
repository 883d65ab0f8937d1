//! Passwords: Argon2id with 19 MiB and two passes (what OWASP asks for), on blocking threads, so many at a time.
//!
//! A hash takes a processor for some hundredths of a second and its memory. Whoever sends many logins at once must not
//! take all of either, so as many hashes run as there are processors, some wait, and the rest are told to come back.

use std::sync::{Arc, LazyLock};

use argon2::Argon2;
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::Semaphore;

/// Hashes that wait for their turn.
const WAITING_MAX: usize = 64;
/// A longer one is no better, and hashing it would cost as long as somebody likes.
const BYTES_MAX: usize = 1_024;

/// Why a password was not hashed or checked.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// To be told to its chooser.
    #[error("{0}")]
    Weak(String),
    #[error("too many logins at once; try again in a second")]
    Busy,
    #[error("hash a password: {0}")]
    Failed(String),
}

/// Hashes passwords, a bounded number at a time.
pub struct Passwords {
    running: Arc<Semaphore>,
    admitted: Arc<Semaphore>,
}

impl Default for Passwords {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            running: Arc::new(Semaphore::new(processors)),
            admitted: Arc::new(Semaphore::new(processors + WAITING_MAX)),
        }
    }
}

/// What a password is compared with where there is none, so that both cases take the same time.
static NOBODYS: LazyLock<Result<String, String>> = LazyLock::new(|| hash("nobody's password"));

impl Passwords {
    /// The PHC text of a new password, with a salt of its own.
    pub async fn hash(&self, password: &str) -> Result<String, PasswordError> {
        let password = password.to_owned();
        self.run(move || hash(&password)).await
    }

    /// Whether it is the password of that PHC text. Without one it never is, after the same time.
    pub async fn verify(
        &self,
        password: &str,
        expected: Option<&str>,
    ) -> Result<bool, PasswordError> {
        if password.len() > BYTES_MAX {
            return Ok(false);
        }
        let (password, expected) = (password.to_owned(), expected.map(ToOwned::to_owned));
        self.run(move || {
            let real = expected.is_some();
            let expected = match expected {
                Some(expected) => expected,
                None => NOBODYS.clone()?,
            };
            let expected = PasswordHash::new(&expected).map_err(|error| error.to_string())?;
            let equal = Argon2::default().verify_password(password.as_bytes(), &expected);
            match equal {
                Ok(()) => Ok(real),
                Err(argon2::password_hash::Error::Password) => Ok(false),
                Err(error) => Err(error.to_string()),
            }
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let admitted = self.admitted.clone().try_acquire_owned();
        let admitted = admitted.map_err(|_| PasswordError::Busy)?;
        let running = self.running.clone().acquire_owned().await;
        let running = running.map_err(|error| PasswordError::Failed(error.to_string()))?;
        // The permits go with the work: a caller who gives up does not make room for another hash while this one runs.
        let done = tokio::task::spawn_blocking(move || {
            let _permits = (admitted, running);
            work()
        })
        .await;
        done.map_err(|error| PasswordError::Failed(error.to_string()))?
            .map_err(PasswordError::Failed)
    }
}

/// Refuses what nobody should use.
pub fn check(password: &str, email: &str, chars_min: u32) -> Result<(), PasswordError> {
    let chars = password.chars().count();
    let problem = if chars < chars_min as usize {
        format!("`password` has {chars} characters: use at least {chars_min}")
    } else if password.len() > BYTES_MAX {
        format!(
            "`password` has {} bytes: use at most {BYTES_MAX}",
            password.len()
        )
    } else if password.trim().eq_ignore_ascii_case(email.trim()) {
        "`password` is the e-mail address: use something that others do not know".to_owned()
    } else {
        return Ok(());
    };
    Err(PasswordError::Weak(problem))
}

fn hash(password: &str) -> Result<String, String> {
    let mut salt = [0; 16];
    SystemRandom::new()
        .fill(&mut salt)
        .map_err(|_| "the system gives no random bytes".to_owned())?;
    let salt = SaltString::encode_b64(&salt).map_err(|error| error.to_string())?;
    Argon2::default()
        .hash_password(password.as_bytes(), &salt)
        .map(|hash| hash.to_string())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_fits_its_hash_only() {
        let passwords = Passwords::default();
        let stored = passwords.hash("正确的密码-staple").await.expect("a hash");
        assert!(
            stored.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{stored}"
        );
        assert_ne!(
            stored,
            passwords.hash("正确的密码-staple").await.expect("a hash"),
            "salted"
        );
        let fits = async |password: &str, expected: Option<&str>| {
            passwords
                .verify(password, expected)
                .await
                .expect("an answer")
        };
        assert!(fits("正确的密码-staple", Some(&stored)).await);
        assert!(!fits("正确的密码-stapl", Some(&stored)).await);
        assert!(!fits(&"x".repeat(2_000), Some(&stored)).await);
        assert!(!fits("nobody's password", None).await, "nobody has it");
        assert!(passwords.verify("x", Some("not a PHC text")).await.is_err());
        assert!(check("short", "a@b", 10).is_err());
        assert!(check("Ann@example.com", "ann@Example.com ", 10).is_err());
        assert!(check(&"x".repeat(1_025), "a@b", 10).is_err());
        assert!(check("long enough", "a@b", 10).is_ok());
    }

    #[tokio::test]
    async fn more_than_wait_are_told_to_come_back() {
        let passwords = Passwords {
            running: Arc::new(Semaphore::new(1)),
            admitted: Arc::new(Semaphore::new(2)),
        };
        let asked = (0..5).map(|_| passwords.verify("x", None));
        let answers = futures::future::join_all(asked).await;
        let busy = answers
            .iter()
            .filter(|a| matches!(a, Err(PasswordError::Busy)))
            .count();
        assert_eq!(busy, 3, "{answers:?}");
        assert!(
            passwords.verify("x", None).await.is_ok(),
            "and there is room again"
        );
    }
}
