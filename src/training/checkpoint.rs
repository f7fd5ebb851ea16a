//! Training that stops and goes on.
