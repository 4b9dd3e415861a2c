//! Provides the tests of the device's lease over gRPC, with a real model that comes and goes.

use distill_proto::v1::hold_device_response::Event as Lease;

use super::*;
use crate::config::VramMode;

async fn swapping(yield_timeout_s: u64) -> Running {
    start(|settings| {
        settings.vram_mode = Some(VramMode::Swap);
        settings.window = Some(4);
        settings.yield_timeout_s = Some(yield_timeout_s);
    })
    .await
}

async fn hold(client: &mut Client, epoch_held: u64) -> tonic::Streaming<v1::HoldDeviceResponse> {
    let request = v1::HoldDeviceRequest {
        holder: "a test".into(),
        epoch_held,
    };
    client.hold_device(request).await.unwrap().into_inner()
}

async fn next(stream: &mut tonic::Streaming<v1::HoldDeviceResponse>) -> Lease {
    let message = tokio::time::timeout(Duration::from_secs(60), stream.message()).await;
    message.unwrap().unwrap().unwrap().event.unwrap()
}

async fn granted(stream: &mut tonic::Streaming<v1::HoldDeviceResponse>) -> u64 {
    match next(stream).await {
        Lease::Granted(granted) => granted.epoch,
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
    let mut lease = hold(&mut client, 0).await;
    let mut epoch = granted(&mut lease).await;

    // Frames are needed that nobody has computed: the holder is asked, and nothing is computed before it has released.
    let streaming = async {
        let request = v1::StreamBlocksRequest {
            cursor: Default::default(),
            plan_fingerprint: plan.clone(),
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
            let mut again = hold(&mut client, 0).await;
            client
                .release_device(v1::ReleaseDeviceRequest { epoch })
                .await
                .unwrap();
            let later = granted(&mut again).await;
            assert!(later > epoch);
            (lease, epoch) = (again, later);
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
        ("DEVICE_HELD", "a test")
    );
    assert!(details.metadata["remedy"].contains("ReleaseDevice"));
    client
        .release_device(v1::ReleaseDeviceRequest { epoch })
        .await
        .unwrap();
    let scored = client.score_tokens(request).await.unwrap().into_inner();
    assert_eq!(scored.blocks.len(), 1);
    let stale = client
        .release_device(v1::ReleaseDeviceRequest { epoch })
        .await
        .unwrap_err();
    assert_eq!(reason(&stale), "STALE_EPOCH");
    drop(engine);
    server.stop().await;
}

#[tokio::test]
async fn a_closed_stream_frees_the_device_after_a_while_and_a_stale_epoch_is_refused() {
    let server = swapping(1).await;
    let mut client = server.client(None);
    let mut lease = hold(&mut client, 0).await;
    let epoch = granted(&mut lease).await;
    let mut second = hold(&mut client, 0).await;
    // It does not yield: who waits for frames or for the device hears its name within the timeout.
    let request = v1::StreamBlocksRequest {
        cursor: Default::default(),
        plan_fingerprint: server.plan(),
    };
    let mut stream = client.stream_blocks(request).await.unwrap().into_inner();
    let status = stream.message().await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unavailable, "HOLDER_HUNG")
    );
    assert!(
        status.message().contains("a test has the device"),
        "{status}"
    );
    let status = second.message().await.unwrap_err();
    assert_eq!(reason(&status), "HOLDER_HUNG");
    // Its stream ends: the next one to ask gets it.
    drop(lease);
    let request = v1::HoldDeviceRequest::default();
    let mut second = loop {
        match client.hold_device(request.clone()).await {
            Ok(stream) => break stream.into_inner(),
            Err(status) => assert_eq!(reason(&status), "HOLDER_HUNG"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let later = granted(&mut second).await;
    assert!(later > epoch);
    let mut back = hold(&mut client, epoch).await;
    let status = back.message().await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::FailedPrecondition, "STALE_EPOCH")
    );
    // The holder comes back on another stream, as after a broken connection, and keeps the device.
    let mut back = hold(&mut client, later).await;
    assert!(granted(&mut back).await > later);
    server.stop().await;
}

#[tokio::test]
async fn a_sketch_is_refused_where_it_would_need_the_device_before_it_is_lent() {
    let server = start(|settings| {
        settings.vram_mode = Some(VramMode::Swap);
        settings.state = Some("sketch:4".parse().unwrap());
    })
    .await;
    let error = server.task.await.unwrap().unwrap_err().to_string();
    assert!(
        error.contains("--vram-mode") && error.contains("precompute"),
        "{error}"
    );
}
