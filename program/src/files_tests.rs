use std::os::unix::{fs::symlink, net::UnixListener};

use super::*;

#[test]
fn what_is_no_regular_file_is_refused_by_name_and_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    crate::output::tests::fifo(&at("fifo"));
    let _socket = UnixListener::bind(at("socket")).unwrap();
    fs::create_dir(at("directory")).unwrap();
    symlink(at("fifo"), at("link")).unwrap();
    for (path, expected) in [
        (at("fifo"), "a named pipe"),
        (at("link"), "a named pipe"),
        (at("socket"), "a socket"),
        (at("directory"), "a directory"),
        ("/dev/zero".into(), "a device"),
        ("/dev/null".into(), "a device"),
    ] {
        for error in [
            read(&path, 10).unwrap_err(),
            open_or_create(&path).unwrap_err(),
        ] {
            assert_eq!(error.reason.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
    assert_eq!(
        read(&at("nowhere"), 10).unwrap_err().reason.kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn a_file_of_the_limit_is_read_and_one_byte_more_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::write(&path, b"0123456789").unwrap();
    symlink(&path, dir.path().join("link")).unwrap();
    for path in [path, dir.path().join("link")] {
        assert_eq!(read(&path, 10).unwrap(), b"0123456789");
        let error = read(&path, 9).unwrap_err();
        assert_eq!(error.reason.kind(), ErrorKind::FileTooLarge);
        assert!(error.to_string().contains("9 bytes"), "{error}");
    }
    // No length in its metadata, and yet bytes.
    assert!(read(Path::new("/proc/self/status"), 10).is_err());
    assert!(
        !read(Path::new("/proc/self/status"), 1 << 20)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn text_that_is_not_utf8_says_from_where_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::write(&path, b"ab\xff").unwrap();
    let error = read_text(&path, 10).unwrap_err();
    assert!(error.to_string().contains("byte 2"), "{error}");
}
