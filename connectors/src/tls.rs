//! The process's one choice of cryptography for TLS.
//!
//! Every client of ours speaks TLS through rustls, which wants to be told once which library computes. Ring is what the
//! HTTP stack already brings. Leaves certificates to the operating system's store, which rustls asks by itself.

/// Makes ring the process's provider. Later calls, and a provider that somebody else chose before, change nothing.
pub fn install() {
    // An error says that a provider is there already, which is what is wanted.
    drop(rustls::crypto::ring::default_provider().install_default());
}
