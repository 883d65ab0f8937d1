//! Vector store seam with LanceDB as its embedded implementation.
