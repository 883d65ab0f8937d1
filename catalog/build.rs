//! Makes a new migration file rebuild the crate: `sqlx::migrate!` only notices changes of files it has already read.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
