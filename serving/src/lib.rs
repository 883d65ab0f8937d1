//! The library behind `va`.
