//! Provides the tests of what the handshake, frames and basis say under other estimators and states.

use distill_proto::{Estimator, StateKind};

use super::*;

async fn frames(server: &Running) -> Vec<Frame> {
    let plan = server.service.engine().unwrap().plan.fingerprint;
    let (blocks, _) = server.stream(b"").await;
    let decode = |block: &v1::Block| {
        let context = FrameContext {
            plan,
            shard: block.shard,
            index: block.index,
        };
        Frame::decode(&block.frame, &context).unwrap()
    };
    blocks.iter().map(decode).collect()
}

#[tokio::test]
async fn drawn_frames_are_as_the_handshake_says_and_scored_alike_every_time() {
    for (name, estimator, most) in [
        ("sampled", Estimator::Sampled, 7),
        ("head+sampled", Estimator::HeadSampled, 11),
    ] {
        let server = start(|settings| {
            settings.estimator = name.parse().unwrap();
            settings.draws = 7;
        })
        .await;
        let engine = server.service.engine().unwrap();
        assert_eq!(
            Estimator::from_schema(engine.info.estimator()),
            Some(estimator)
        );
        assert_eq!(engine.info.top_k, most);
        for frame in frames(&server).await {
            assert_eq!(frame.rows.estimator, estimator);
            assert!(frame.rows.k <= most as usize);
        }
        let request = to_score(&engine, 1);
        let mut client = server.client(None);
        let once = client
            .score_tokens(request.clone())
            .await
            .unwrap()
            .into_inner();
        let again = client.score_tokens(request).await.unwrap().into_inner();
        assert_eq!(once, again);
        drop(engine);
        server.stop().await;
    }
}

#[tokio::test]
async fn estimator_draws_seed_and_state_name_the_plan() {
    let mut plans = Vec::new();
    let sampled = |top_k| async move {
        let server = start(|settings| {
            settings.estimator = "sampled".parse().unwrap();
            settings.top_k = top_k;
        })
        .await;
        let plan = server.plan();
        server.stop().await;
        plan
    };
    assert_eq!(sampled(4).await, sampled(5).await, "K is not used");
    for (estimator, draws, seed, state) in [
        ("top-k", 32, 0, "none"),
        ("sampled", 32, 0, "none"),
        ("head+sampled", 32, 0, "none"),
        ("sampled", 31, 0, "none"),
        ("sampled", 32, 1, "none"),
        ("top-k", 32, 0, "sketch:4"),
        ("top-k", 32, 0, "sketch:4:f16"),
        ("top-k", 32, 0, "hidden:1"),
    ] {
        let server = start(|settings| {
            settings.estimator = estimator.parse().unwrap();
            settings.draws = draws;
            settings.sample_seed = seed;
            settings.state = state.parse().unwrap();
        })
        .await;
        plans.push(server.plan());
        server.stop().await;
    }
    let distinct: std::collections::HashSet<_> = plans.iter().collect();
    assert_eq!(distinct.len(), plans.len());
}

#[tokio::test]
async fn a_sketch_is_served_with_its_basis_and_its_error() {
    let server = start(|settings| settings.state = "sketch:6".parse().unwrap()).await;
    let info = server.service.engine().unwrap().info.clone();
    assert_eq!(info.state_kind(), v1::StateKind::Sketch);
    assert_eq!((info.state_rank, info.state_layer), (6, 0));
    assert!(info.state_error > 0.0 && info.state_error < 1.0);
    let state = frames(&server).await.remove(0).rows.state.unwrap();
    assert_eq!((state.kind, state.rank), (StateKind::Sketch, 6));
    let plan_fingerprint = server.plan();
    let request = v1::GetBasisRequest { plan_fingerprint };
    let stream = server.client(None).get_basis(request).await.unwrap();
    let chunk = stream.into_inner().message().await.unwrap().unwrap();
    assert_eq!((chunk.rows, chunk.rank), (VOCAB_SIZE, 6));
    server.stop().await;
}

#[tokio::test]
async fn an_earlier_layer_is_served_without_a_basis() {
    let server = start(|settings| settings.state = "hidden:1:i8".parse().unwrap()).await;
    let info = server.service.engine().unwrap().info.clone();
    assert_eq!(info.state_kind(), v1::StateKind::Hidden);
    assert_eq!((info.state_rank, info.state_layer), (64, 1));
    assert_eq!(info.state_error, 0.0);
    let state = frames(&server).await.remove(0).rows.state.unwrap();
    assert_eq!((state.kind, state.rank), (StateKind::Hidden, 64));
    assert_eq!((info.state_layers, state.layers), (vec![1], 1));
    let plan_fingerprint = server.plan();
    let request = v1::GetBasisRequest { plan_fingerprint };
    let status = server.client(None).get_basis(request).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(reason(&status), "NO_BASIS");
    assert!(
        status.message().contains("layers [1]"),
        "{}",
        status.message()
    );
    server.stop().await;
}
