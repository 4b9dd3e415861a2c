//! teacher-server
