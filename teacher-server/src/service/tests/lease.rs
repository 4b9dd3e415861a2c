//! Provides the tests of the device's lease over gRPC, with a real model that comes and goes.

use distill_proto::v1::hold_device_response::Event as Lease;

use super::*;
use crate::config::VramMode;

async fn swapping(yield_timeout_s: u64) -> Running {
    start(|settings| {
        settings.vram_mode = VramMode::Swap;
        settings.window = 4;
        settings.yield_timeout_s = yield_timeout_s;
    })
    .await
}

fn asking(held: &v1::Granted) -> v1::HoldDeviceRequest {
    v1::HoldDeviceRequest {
        holder: "a test\u{202e}\u{1b}[2J".into(),
        epoch_held: held.epoch,
        secret: held.secret.clone(),
        keeps_secret: true,
    }
}

async fn hold(client: &mut Client, held: &v1::Granted) -> tonic::Streaming<v1::HoldDeviceResponse> {
    let answer = client.hold_device(asking(held)).await;
    answer.unwrap().into_inner()
}

async fn ask(client: &mut Client) -> tonic::Streaming<v1::HoldDeviceResponse> {
    hold(client, &v1::Granted::default()).await
}

fn releasing(held: &v1::Granted) -> v1::ReleaseDeviceRequest {
    v1::ReleaseDeviceRequest {
        epoch: held.epoch,
        secret: held.secret.clone(),
    }
}

async fn next(stream: &mut tonic::Streaming<v1::HoldDeviceResponse>) -> Lease {
    let message = tokio::time::timeout(Duration::from_secs(60), stream.message()).await;
    message.unwrap().unwrap().unwrap().event.unwrap()
}

async fn granted(stream: &mut tonic::Streaming<v1::HoldDeviceResponse>) -> v1::Granted {
    match next(stream).await {
        Lease::Granted(granted) => granted,
        Lease::Yield(_) => panic!("a yield before the grant"),
    }
}

#[tokio::test]
async fn swapped_frames_are_those_of_a_resident_teacher_and_the_device_goes_back_and_forth() {
    let resident = start(|_| {}).await;
    let (expected, end) = resident.stream(b"").await;
    let plan = resident.plan();
    resident.stop().await;

    let server = swapping(60).await;
    assert_eq!(server.plan(), plan, "how memory is shared changes no frame");
    let engine = server.service.engine().unwrap();
    assert_eq!(engine.info.vram_mode(), v1::VramMode::Swap);
    assert_eq!(engine.basis.as_ref().unwrap().rank(), 64);
    let mut client = server.client(None);
    let mut lease = ask(&mut client).await;
    let mut held = granted(&mut lease).await;

    // Frames are needed that nobody has computed: the holder is asked, and nothing is computed before it has released.
    let streaming = async {
        let request = v1::StreamBlocksRequest {
            cursor: Default::default(),
            plan_fingerprint: plan.clone(),
            ..Default::default()
        };
        let mut client = server.client(None);
        let mut stream = client.stream_blocks(request).await.unwrap().into_inner();
        let mut blocks = Vec::new();
        loop {
            match stream.message().await.unwrap().unwrap().event.unwrap() {
                Event::Block(block) => blocks.push(block),
                Event::Heartbeat(_) => {}
                Event::End(end) => return (blocks, end),
            }
        }
    };
    let windows = expected.len().div_ceil(4);
    let holding = async {
        for _ in 0..windows {
            assert!(matches!(next(&mut lease).await, Lease::Yield(_)));
            let before = engine.production.sequences_computed();
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(engine.production.sequences_computed(), before);
            let mut client = server.client(None);
            // In the line again before it leaves, so that the teacher makes one window and no more.
            let mut again = ask(&mut client).await;
            client.release_device(releasing(&held)).await.unwrap();
            let later = granted(&mut again).await;
            assert!(later.epoch > held.epoch);
            (lease, held) = (again, later);
        }
    };
    let ((blocks, ended), ()) = tokio::join!(streaming, holding);
    assert_eq!((&blocks, &ended), (&expected, &end));

    // With everything kept the teacher is not needed any more; for scores it is.
    let request = to_score(&engine, 0);
    let refused = client.score_tokens(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let details = refused.get_details_error_info().unwrap();
    assert_eq!(
        (details.reason.as_str(), details.metadata["holder"].as_str()),
        ("DEVICE_HELD", "a test[2J")
    );
    assert!(details.metadata["remedy"].contains("ReleaseDevice"));
    client.release_device(releasing(&held)).await.unwrap();
    let scored = client.score_tokens(request).await.unwrap().into_inner();
    assert_eq!(scored.blocks.len(), 1);
    let stale = client.release_device(releasing(&held)).await.unwrap_err();
    assert_eq!(reason(&stale), "STALE_EPOCH");
    drop(engine);
    server.stop().await;
}

#[tokio::test]
async fn a_closed_stream_frees_the_device_after_a_while_and_a_stale_epoch_is_refused() {
    let server = swapping(1).await;
    let mut client = server.client(None);
    let mut lease = ask(&mut client).await;
    let held = granted(&mut lease).await;
    let mut second = ask(&mut client).await;
    // It does not yield: who waits for frames or for the device hears its name within the timeout.
    let request = v1::StreamBlocksRequest {
        cursor: Default::default(),
        plan_fingerprint: server.plan(),
        ..Default::default()
    };
    let mut stream = client.stream_blocks(request).await.unwrap().into_inner();
    let status = stream.message().await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unavailable, "HOLDER_HUNG")
    );
    assert!(
        status.message().contains("a test[2J has the device"),
        "{status}"
    );
    let status = second.message().await.unwrap_err();
    assert_eq!(reason(&status), "HOLDER_HUNG");
    // Its stream ends: the next one to ask gets it.
    drop(lease);
    let request = asking(&v1::Granted::default());
    let mut second = loop {
        match client.hold_device(request.clone()).await {
            Ok(stream) => break stream.into_inner(),
            Err(status) => assert_eq!(reason(&status), "HOLDER_HUNG"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let later = granted(&mut second).await;
    assert!(later.epoch > held.epoch);
    let status = client.hold_device(asking(&held)).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::FailedPrecondition, "STALE_EPOCH")
    );
    // The holder comes back on another stream, as after a broken connection, and keeps the device.
    let mut back = hold(&mut client, &later).await;
    assert!(granted(&mut back).await.epoch > later.epoch);
    server.stop().await;
}

#[tokio::test]
async fn a_trainer_without_the_grant_s_secret_hears_that_it_is_too_old() {
    let server = swapping(60).await;
    let mut client = server.client(None);
    for epoch_held in [0, 1] {
        let older = v1::HoldDeviceRequest {
            holder: "an older trainer".into(),
            epoch_held,
            ..Default::default()
        };
        let status = client.hold_device(older).await.unwrap_err();
        assert_eq!(
            (status.code(), reason(&status).as_str()),
            (Code::FailedPrecondition, "NO_SECRET")
        );
        assert!(status.message().contains("one release"), "{status}");
    }
    let mut lease = ask(&mut client).await;
    let held = granted(&mut lease).await;
    assert_eq!(held.secret.len(), crate::lease::SECRET_BYTES);
    let older = v1::ReleaseDeviceRequest {
        epoch: held.epoch,
        ..Default::default()
    };
    let status = client.release_device(older).await.unwrap_err();
    assert_eq!(reason(&status), "NO_SECRET");
    let guess = v1::Granted {
        epoch: held.epoch,
        secret: vec![0; crate::lease::SECRET_BYTES].into(),
    };
    let status = client.release_device(releasing(&guess)).await.unwrap_err();
    assert_eq!(reason(&status), "STALE_EPOCH");
    assert!(!format!("{status:?}").contains(&held.epoch.to_string()));
    client.release_device(releasing(&held)).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_sketch_is_refused_where_it_would_need_the_device_before_it_is_lent() {
    let server = start(|settings| {
        settings.vram_mode = VramMode::Swap;
        settings.state = "sketch:4".parse().unwrap();
    })
    .await;
    let error = server.task.await.unwrap().unwrap_err().to_string();
    assert!(
        error.contains("--vram-mode") && error.contains("precompute"),
        "{error}"
    );
}
