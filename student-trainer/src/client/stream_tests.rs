use super::{
    super::mock::{MockTeacher, made_up_frame},
    *,
};

async fn collect(mock: &MockTeacher, options: StreamOptions) -> Result<Vec<Received>> {
    let all = collect_from(mock, Position::default(), options).await?;
    Ok(all
        .into_iter()
        .filter_map(|arrival| arrival.received)
        .collect())
}

async fn collect_from(
    mock: &MockTeacher,
    position: Position,
    options: StreamOptions,
) -> Result<Vec<Arrival>> {
    let shutdown = Shutdown::default();
    let teacher = Teacher::connect(&mock.connect_options(), &shutdown).await?;
    let info = teacher.info().await?;
    let mut stream = BlockStream::start(teacher, info, position, options, shutdown);
    let mut all = Vec::new();
    while let Some(arrival) = stream.next().await? {
        all.push(arrival);
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
async fn what_is_left_out_stays_so_across_lost_connections() {
    let mock = MockTeacher::start(12).await;
    mock.drop_before_frames([0, 1, 5, 6, 11]);
    let frames: Vec<bool> = (0..12).map(|index| index % 3 != 1).collect();
    let position = Position {
        left_out: LeftOut::of(0, &frames),
        ..Position::default()
    };
    let all = collect_from(&mock, position, options()).await.unwrap();
    assert_eq!(all.len(), 12);
    for (index, arrival) in (0..).zip(&all) {
        assert_eq!(
            (arrival.index, arrival.sequence_id),
            (index, made_up_frame(index).sequence_id)
        );
        let bytes = arrival.received.as_ref().map(|received| &received.bytes);
        let sent = mock.frames();
        let expected = (index % 3 == 1).then(|| &sent[index as usize]);
        assert_eq!(bytes, expected);
    }
    assert_eq!(mock.streams_opened(), 6);
}

#[tokio::test]
async fn a_frame_that_nobody_left_out_has_to_come() {
    let mock = MockTeacher::start(3).await;
    mock.lie_in_streams(|_, sent| {
        for message in sent.iter_mut().flatten() {
            if let Some(Event::Block(block)) = &mut message.event {
                block.frame.clear();
            }
        }
    });
    let position = Position {
        left_out: LeftOut::of(0, &[true]),
        ..Position::default()
    };
    let refused = collect_from(&mock, position, options()).await.unwrap_err();
    assert!(
        refused.to_string().contains("frame 1 came without"),
        "{refused}"
    );
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
