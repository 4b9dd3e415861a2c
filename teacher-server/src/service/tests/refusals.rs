//! Provides the tests of what is refused: without a token, of another plan, out of range, absurd.

use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
};

use super::*;

#[tokio::test]
async fn every_rpc_needs_the_token_when_one_is_set() {
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{TOKEN}\n")).unwrap();
    let server = start(|settings| settings.token_file = Some(file.path().to_owned())).await;
    let plan = server.plan();
    for token in [None, Some("0123456789abcdef0123456789abcdeg"), Some("")] {
        let mut client = server.client(token);
        let plan_fingerprint = plan.clone();
        let basis = v1::GetBasisRequest { plan_fingerprint };
        let vocabulary = v1::GetVocabularyRequest {
            plan_fingerprint: plan.clone(),
        };
        let answers = [
            client
                .get_server_info(v1::GetServerInfoRequest {})
                .await
                .map(drop),
            client
                .stream_blocks(v1::StreamBlocksRequest::default())
                .await
                .map(drop),
            client.get_basis(basis).await.map(drop),
            client.get_vocabulary(vocabulary).await.map(drop),
            client
                .fetch_blocks(v1::FetchBlocksRequest::default())
                .await
                .map(drop),
            client
                .score_tokens(v1::ScoreTokensRequest::default())
                .await
                .map(drop),
            client
                .generate(v1::GenerateRequest::default())
                .await
                .map(drop),
            client
                .hold_device(v1::HoldDeviceRequest::default())
                .await
                .map(drop),
            client
                .release_device(v1::ReleaseDeviceRequest::default())
                .await
                .map(drop),
        ];
        let schema = include_str!("../../../../proto/distill/v1/teacher.proto");
        let rpcs = schema
            .lines()
            .filter(|line| line.trim_start().starts_with("rpc "));
        assert_eq!(rpcs.count(), answers.len(), "every RPC is tried");
        let mut health = HealthClient::new(server.channel.clone());
        let request = HealthCheckRequest::default();
        let mut reflection = ServerReflectionClient::new(server.channel.clone());
        let names = tokio_stream::once(ServerReflectionRequest::default());
        let others = [
            health.check(request.clone()).await.map(drop),
            health.watch(request).await.map(drop),
            reflection.server_reflection_info(names).await.map(drop),
        ];
        let answers = answers.into_iter().chain(others);
        for answer in answers {
            let status = answer.unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated);
            assert!(!format!("{status:?}").contains(TOKEN));
        }
    }
    let info = server
        .client(Some(TOKEN))
        .get_server_info(v1::GetServerInfoRequest {})
        .await;
    assert_eq!(info.unwrap().into_inner().plan_fingerprint, plan);
    server.stop().await;
}

#[tokio::test]
async fn hostile_requests_are_answered_with_their_reason() {
    let server = start(|_| {}).await;
    let engine = server.service.engine().unwrap();
    let (plan, tokenizer) = (engine.plan.fingerprint, engine.tokenizer.to_hex());
    let mut client = server.client(None);

    let other = Fingerprint::of(b"other");
    for wrong in [other.to_hex(), String::new(), "é".repeat(100_000)] {
        let request = v1::StreamBlocksRequest {
            cursor: Default::default(),
            plan_fingerprint: wrong,
            ..Default::default()
        };
        let status = client.stream_blocks(request).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        let details = status.get_details_error_info().unwrap();
        assert_eq!(details.metadata["served"], plan.to_hex());
        assert!(status.message().contains("GetServerInfo") && status.message().len() < 1000);
    }

    let past_the_end = Cursor {
        plan,
        next: u64::MAX,
    };
    let foreign = Cursor {
        plan: other,
        next: 0,
    };
    for cursor in [
        vec![1, 2, 3],
        vec![0; 1 << 20],
        past_the_end.encode(),
        foreign.encode(),
    ] {
        let request = v1::StreamBlocksRequest {
            cursor: cursor.into(),
            plan_fingerprint: plan.to_hex(),
            ..Default::default()
        };
        let status = client.stream_blocks(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }

    let fetch = |sequence_ids| v1::FetchBlocksRequest {
        sequence_ids,
        plan_fingerprint: plan.to_hex(),
    };
    let status = client.fetch_blocks(fetch(vec![42])).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "UNKNOWN_SEQUENCE")
    );
    let status = client
        .fetch_blocks(fetch(vec![42; 70_000]))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);

    let hold = v1::HoldDeviceRequest {
        keeps_secret: true,
        ..Default::default()
    };
    let status = client.hold_device(hold).await.unwrap_err();
    assert_eq!(reason(&status), "NOTHING_TO_LEND");
    let release = v1::ReleaseDeviceRequest {
        epoch: 1,
        secret: vec![1; 16].into(),
    };
    let status = client.release_device(release).await.unwrap_err();
    assert_eq!(reason(&status), "NOTHING_TO_LEND");

    let tokens = |token_ids: Vec<u32>, target_mask: Vec<bool>| v1::TokenSequence {
        token_ids,
        target_mask,
    };
    for (sequences, complaint) in [
        (vec![], "sequences"),
        (vec![tokens(vec![1], vec![false])], "2 to 4096"),
        (
            vec![tokens(vec![1, VOCAB_SIZE], vec![false, true])],
            "outside the vocabulary of 258",
        ),
        (
            vec![tokens(vec![1, u32::MAX], vec![false, true])],
            "outside the vocabulary",
        ),
        (vec![tokens(vec![1, 2], vec![true, true])], "first token"),
        (
            vec![tokens(vec![1, 2], vec![false])],
            "1 flags for 2 tokens",
        ),
        (vec![tokens(vec![1, 2], vec![false, false])], "no target"),
        (vec![tokens(vec![1; 5000], vec![true; 5000])], "5000 tokens"),
        (
            vec![tokens(vec![1, 2], vec![false, true]); 300],
            "300 of them",
        ),
        (
            vec![tokens(vec![1; 4000], vec![true; 4000]); 40],
            "160000 tokens",
        ),
    ] {
        let request = v1::ScoreTokensRequest {
            sequences,
            tokenizer_fingerprint: tokenizer.clone(),
        };
        let status = client.score_tokens(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(complaint), "{status}");
    }
    let request = v1::ScoreTokensRequest::default();
    let status = client.score_tokens(request).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(
        engine.production.sequences_computed(),
        0,
        "nothing was run for any of them"
    );
    drop(engine);
    server.stop().await;
}

#[tokio::test]
async fn a_missing_model_ends_the_server_with_its_name() {
    let server = start(|settings| settings.model = "/no/such/model".into()).await;
    let error = server.task.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("/no/such/model"), "{error}");
}
