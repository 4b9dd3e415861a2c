use super::{super::mock::MockTeacher, *};

async fn collect(mock: &MockTeacher, options: StreamOptions) -> Result<Vec<Received>> {
    let shutdown = Shutdown::default();
    let teacher = Teacher::connect(&mock.connect_options(), &shutdown).await?;
    let info = teacher.info().await?;
    let mut stream = BlockStream::start(teacher, info, Position::default(), options, shutdown);
    let mut all = Vec::new();
    while let Some(received) = stream.next().await? {
        all.push(received);
    }
    Ok(all)
}

fn options() -> StreamOptions {
    StreamOptions {
        prefetch_frames: 2,
        reconnect_attempts: 3,
        token_ids: 64,
        ..StreamOptions::default()
    }
}

#[tokio::test]
async fn connections_dropped_at_random_frames_lose_nothing_and_repeat_nothing() {
    let mock = MockTeacher::start(12).await;
    mock.drop_before_frames([0, 1, 5, 6, 11]);
    let frames = collect(&mock, options()).await.unwrap();
    let got: Vec<&Bytes> = frames.iter().map(|received| &received.bytes).collect();
    assert_eq!(got, mock.frames().iter().collect::<Vec<_>>());
    assert_eq!(mock.streams_opened(), 6);
}

#[tokio::test]
async fn a_stream_cut_before_its_end_message_is_taken_up_again() {
    let mock = MockTeacher::start(3).await;
    mock.drop_before_frames([3]);
    assert_eq!(collect(&mock, options()).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_connection_that_never_gets_anywhere_is_given_up() {
    let mock = MockTeacher::start(3).await;
    mock.drop_before_frames([1; 9]);
    let message = collect(&mock, options()).await.unwrap_err().to_string();
    assert!(message.contains("4 times in a row"), "{message}");
}

#[tokio::test]
async fn a_slow_consumer_stops_the_reading() {
    let mock = MockTeacher::start(40).await;
    let shutdown = Shutdown::default();
    let teacher = Teacher::connect(&mock.connect_options(), &shutdown)
        .await
        .unwrap();
    let info = teacher.info().await.unwrap();
    let mut stream = BlockStream::start(
        teacher,
        info,
        Position::default(),
        options(),
        shutdown.clone(),
    );
    stream.next().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(stream.receiver.len() <= 2);
    shutdown.request();
    while stream.next().await.unwrap().is_some() {}
}
