//! student-trainer
pub mod loss;
