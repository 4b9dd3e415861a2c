//! Tests of writing over everything that a path may lead to.

use std::{
    io::{Read, Seek, SeekFrom},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::symlink,
    },
};

use super::*;

const SHORT: Duration = Duration::from_millis(60);

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_is_replaced_whole_and_nothing_else_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    for content in ["long content", "short"] {
        write(&path, content.as_bytes()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        MODE
    );
    // Who made a file private does not find its next version public.
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    write(&path, b"secret").unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(names(dir.path()), ["file"]);
}

#[test]
fn what_cannot_be_written_is_named_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("no/file");
    let message = write(&missing, b"").unwrap_err().to_string();
    assert!(message.contains("no"), "{message}");
    let message = write(dir.path(), b"").unwrap_err().to_string();
    assert!(message.contains("directory"), "{message}");
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_symbolic_link_was_replaced_by_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("elsewhere")).unwrap();
    fs::write(at("elsewhere/old"), "old").unwrap();
    for (link, target, file) in [
        ("to-a-file", "elsewhere/old", "elsewhere/old"),
        ("to-nothing", "elsewhere/new", "elsewhere/new"),
        ("to-a-link", "to-nothing", "elsewhere/new"),
        ("elsewhere/up", "../beside", "beside"),
    ] {
        symlink(target, at(link)).unwrap();
        write(&at(link), link.as_bytes()).unwrap();
        assert_eq!(fs::read_link(at(link)).unwrap(), Path::new(target));
        assert_eq!(fs::read_to_string(at(file)).unwrap(), link);
        assert!(!fs::symlink_metadata(at(file)).unwrap().is_symlink());
    }
    symlink("round", at("round")).unwrap();
    let message = write(&at("round"), b"").unwrap_err().to_string();
    assert!(message.contains("links"), "{message}");
}

/// Both ends of a terminal, and the device's path.
#[expect(unsafe_code, reason = "there is no safe interface")]
fn terminal() -> (File, OwnedFd, PathBuf) {
    let (mut reader, mut device) = (0, 0);
    // SAFETY: both numbers live through the call; the rest may be null.
    let (reader, device) = unsafe {
        let none = std::ptr::null_mut();
        let opened = libc::openpty(&mut reader, &mut device, none, none.cast(), none.cast());
        assert_eq!(opened, 0);
        (File::from_raw_fd(reader), OwnedFd::from_raw_fd(device))
    };
    let path = fs::read_link(format!("/proc/self/fd/{}", device.as_raw_fd())).unwrap();
    (reader, device, path)
}

#[test]
fn a_device_was_replaced_by_a_file() {
    let (mut reader, _device, path) = terminal();
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    symlink(&path, &link).unwrap();
    for path in [&path, &link] {
        write(path, b"1234").unwrap();
        let mut found = [0; 4];
        reader.read_exact(&mut found).unwrap();
        assert_eq!(&found, b"1234");
    }
    assert!(fs::metadata(&path).unwrap().file_type().is_char_device());
    let full = write(Path::new("/dev/full"), b"1234").unwrap_err();
    assert_eq!(full.reason.kind(), ErrorKind::StorageFull);
}

#[expect(unsafe_code, reason = "there is no safe interface")]
pub(crate) fn fifo(path: &Path) {
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the name ends with a zero and lives through the call.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
}

#[test]
fn a_fifo_takes_everything_and_without_a_reader_the_wait_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    fifo(&path);
    // More than a pipe holds.
    let bytes: Vec<u8> = (0..300_000_u32).map(|i| i as u8).collect();
    let reader = std::thread::spawn({
        let path = path.clone();
        move || {
            std::thread::sleep(SHORT);
            fs::read(path).unwrap()
        }
    });
    write(&path, &bytes).unwrap();
    assert_eq!(reader.join().unwrap(), bytes);

    let message = write_patiently(&path, &bytes, MODE, SHORT)
        .unwrap_err()
        .to_string();
    assert!(message.contains("nobody has read"), "{message}");
    // One that opens it and reads nothing.
    let _silent = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let message = write_patiently(&path, &bytes, MODE, SHORT)
        .unwrap_err()
        .to_string();
    assert!(message.contains("nobody has read"), "{message}");
    assert!(fs::metadata(&path).unwrap().file_type().is_fifo());
}

#[test]
fn the_file_behind_a_descriptor_was_replaced_under_who_writes_it() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"before ").unwrap();
    let number = file.as_file().as_raw_fd();
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    symlink(format!("/dev/fd/{number}"), &link).unwrap();
    for path in [
        Path::new(&format!("/dev/fd/{number}")),
        Path::new(&format!("/proc/self/fd/{number}")),
        &link,
    ] {
        write(path, b"between ").unwrap();
    }
    file.write_all(b"after").unwrap();
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before between between between after");
}
