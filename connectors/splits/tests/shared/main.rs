//! Shared indexes as their users see them: several writers and readers over one catalog and one object store.
//!
//! Every test runs on SQLite with a directory and on a real PostgreSQL server with a real S3 server. [`on_both`] makes the
//! two tests out of one function.

/// A test on each kind of place for each of the functions, which take an [`On`].
macro_rules! on_both {
    ($($test:ident),+ $(,)?) => {
        mod local {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    super::$test($crate::world::On::Local).await;
                }
            )+
        }
        mod servers {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    if let Some(on) = $crate::world::servers() {
                        super::$test(on).await;
                    }
                }
            )+
        }
    };
}

mod cache;
mod equality;
mod merges;
#[path = "../../../../deploy/dev/server.rs"]
mod server;
mod views;
mod world;
