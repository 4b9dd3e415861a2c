use std::time::Duration;

use bytes::Bytes;
use distill_proto::{
    Cursor, Frame, FrameContext, LeftOut,
    v1::{stream_blocks_response::Event, teacher_service_client::TeacherServiceClient},
};
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::{
    Code,
    metadata::MetadataValue,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;

use super::*;
use crate::{
    config::{Config, EstimatorSetting},
    serve::Server,
    testing::{VOCAB_SIZE, write_model},
};

mod lease;
mod refusals;
mod settings;

type Client = TeacherServiceClient<InterceptedService<Channel, Bearer>>;

/// Sends a token along.
#[derive(Clone, Default)]
struct Bearer(Option<String>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            let value = MetadataValue::try_from(format!("Bearer {token}")).unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// A server over a tiny model and a corpus of about a dozen sequences, in this process.
struct Running {
    channel: Channel,
    service: Service,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<()>>,
    _directory: tempfile::TempDir,
}

async fn start(change: impl FnOnce(&mut Config)) -> Running {
    let directory = tempfile::tempdir().unwrap();
    write_model(directory.path());
    let corpus = directory.path().join("corpus.txt");
    let text = "It was a bright cold day in April, and the clocks were striking thirteen. ";
    std::fs::write(&corpus, text.repeat(4)).unwrap();
    let mut settings = Config {
        model: directory.path().to_owned(),
        corpus: vec![corpus],
        seq_len: 24,
        batch_size: 2,
        estimator: EstimatorSetting(distill_proto::Estimator::TopK),
        top_k: 4,
        state: "exact".parse().unwrap(),
        bind: "127.0.0.1:0".parse().unwrap(),
        json: true,
        ..Config::default()
    };
    change(&mut settings);
    settings.check("serve").unwrap();
    let server = Server::bind(settings).await.unwrap();
    let address = match server.address() {
        unix if unix.starts_with("unix:") => unix.to_owned(),
        tcp => format!("http://{tcp}"),
    };
    let channel = Endpoint::from_shared(address).unwrap().connect_lazy();
    let service = server.service();
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(server.run(async {
        stopped.await.unwrap();
    }));
    for _ in 0..500 {
        if service.engine().is_ok() || task.is_finished() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Running {
        channel,
        service,
        stop,
        task,
        _directory: directory,
    }
}

impl Running {
    fn client(&self, token: Option<&str>) -> Client {
        let bearer = Bearer(token.map(str::to_owned));
        TeacherServiceClient::with_interceptor(self.channel.clone(), bearer)
    }

    fn plan(&self) -> String {
        self.service.engine().unwrap().plan.fingerprint.to_hex()
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }

    /// Streams from `cursor` to the end.
    async fn stream(&self, cursor: &[u8]) -> (Vec<v1::Block>, v1::End) {
        self.stream_without(cursor, Bytes::new()).await
    }

    async fn stream_without(&self, cursor: &[u8], left_out: Bytes) -> (Vec<v1::Block>, v1::End) {
        let request = v1::StreamBlocksRequest {
            cursor: cursor.to_vec().into(),
            plan_fingerprint: self.plan(),
            left_out,
        };
        let mut stream = self
            .client(None)
            .stream_blocks(request)
            .await
            .unwrap()
            .into_inner();
        let mut blocks = Vec::new();
        loop {
            match stream.message().await.unwrap().unwrap().event.unwrap() {
                Event::Block(block) => blocks.push(block),
                Event::Heartbeat(_) => {}
                Event::End(end) => return (blocks, end),
            }
        }
    }
}

#[tokio::test]
async fn what_a_client_leaves_out_comes_by_its_name_alone() {
    let (server, other) = (start(|_| ()).await, start(|_| ()).await);
    let (whole, _) = other.stream(b"").await;
    let plan = server.service.engine().unwrap().plan.fingerprint;
    for from in [0, 2] {
        // Every third comes, and all behind the last bit.
        let frames: Vec<bool> = (from..whole.len() - 2).map(|i| i % 3 != 0).collect();
        let left_out = LeftOut::of(from as u64, &frames);
        let next = from as u64;
        let cursor = Cursor { plan, next }.encode();
        let (blocks, end) = server
            .stream_without(&cursor, left_out.bits_from(next))
            .await;
        assert_eq!((end.count, end.digest.len()), (whole.len() as u64, 0));
        assert_eq!(blocks.len(), whole.len() - from);
        for (block, whole) in blocks.into_iter().zip(&whole[from..]) {
            let (shard, index) = (whole.shard, whole.index);
            let context = FrameContext { plan, shard, index };
            let frame = Frame::decode(&whole.frame, &context).unwrap();
            if left_out.has(block.index) {
                let expected = v1::Block {
                    cursor: whole.cursor.clone(),
                    index: whole.index,
                    sequence_id: frame.sequence_id,
                    ..v1::Block::default()
                };
                assert_eq!(block, expected);
            } else {
                assert_eq!(&block, whole);
            }
        }
    }
    server.stop().await;
    other.stop().await;
}

/// The question that a trainer would ask about a sequence of the plan.
fn to_score(engine: &Engine, index: usize) -> v1::ScoreTokensRequest {
    let sequence = engine.plan.sequence(index).unwrap();
    v1::ScoreTokensRequest {
        sequences: vec![v1::TokenSequence {
            token_ids: sequence.token_ids.clone(),
            target_mask: sequence.target_mask.clone(),
        }],
        tokenizer_fingerprint: engine.tokenizer.to_hex(),
    }
}

fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .expect("ErrorInfo is attached")
        .reason
}

#[tokio::test]
async fn a_plan_is_streamed_resumed_and_fetched_with_the_same_bytes_and_one_run() {
    let server = start(|_| {}).await;
    let info = server
        .client(None)
        .get_server_info(v1::GetServerInfoRequest {})
        .await;
    let info = info.unwrap().into_inner();
    assert_eq!(
        (info.effective_vocab_size, info.head_rows),
        (VOCAB_SIZE, 272)
    );
    let (blocks, end) = server.stream(b"").await;
    assert_eq!(blocks.len() as u64, info.sequence_count);
    assert_eq!(end.count, info.sequence_count);
    let mut ids = Vec::new();
    for block in &blocks {
        let context = FrameContext {
            plan: Fingerprint::from_hex(&info.plan_fingerprint).unwrap(),
            shard: block.shard,
            index: block.index,
        };
        let frame = Frame::decode(&block.frame, &context).unwrap();
        assert_eq!(frame.rows.k, 4);
        assert_eq!(
            frame.rows.state.as_ref().unwrap().rank as u32,
            info.state_rank
        );
        ids.push(frame.sequence_id);
    }
    let all: Vec<u8> = blocks
        .iter()
        .flat_map(|block| block.frame.to_vec())
        .collect();
    assert_eq!(end.digest, Fingerprint::of(&all).0.to_vec());
    for from in [0, 3, blocks.len() - 1] {
        let (rest, again) = server.stream(&blocks[from].cursor).await;
        assert_eq!(rest, blocks[from + 1..]);
        assert_eq!(again, end);
    }
    let request = v1::FetchBlocksRequest {
        sequence_ids: vec![ids[5], ids[1], ids[5]],
        plan_fingerprint: info.plan_fingerprint,
    };
    let mut fetched = server
        .client(None)
        .fetch_blocks(request)
        .await
        .unwrap()
        .into_inner();
    for expected in [5, 1, 5] {
        let block = fetched.message().await.unwrap().unwrap().block.unwrap();
        assert_eq!(block, blocks[expected]);
    }
    assert!(fetched.message().await.unwrap().is_none());
    let computed = server
        .service
        .engine()
        .unwrap()
        .production
        .sequences_computed();
    assert_eq!(computed, info.sequence_count, "every sequence once");
    server.stop().await;
}

#[tokio::test]
async fn the_basis_arrives_whole_and_only_where_there_is_state() {
    let server = start(|_| {}).await;
    let request = v1::GetBasisRequest {
        plan_fingerprint: server.plan(),
    };
    let mut stream = server
        .client(None)
        .get_basis(request)
        .await
        .unwrap()
        .into_inner();
    let (mut rows, mut bytes) = (0, 0);
    while let Some(chunk) = stream.message().await.unwrap() {
        assert_eq!(chunk.first_row, rows);
        assert_eq!(chunk.values_f16.len() as u32, 2 * chunk.rows * chunk.rank);
        rows += chunk.rows;
        bytes += chunk.values_f16.len();
    }
    assert_eq!((rows, bytes), (VOCAB_SIZE, 2 * 64 * VOCAB_SIZE as usize));
    server.stop().await;

    let server = start(|settings| settings.state = "none".parse().unwrap()).await;
    let request = v1::GetBasisRequest {
        plan_fingerprint: server.plan(),
    };
    let status = server.client(None).get_basis(request).await.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::FailedPrecondition, "NO_STATE")
    );
    server.stop().await;
}

#[tokio::test]
async fn the_vocabulary_arrives_whole_with_its_special_tokens() {
    let server = start(|_| {}).await;
    let request = v1::GetVocabularyRequest {
        plan_fingerprint: server.plan(),
    };
    let answer = server.client(None).get_vocabulary(request).await;
    let chunk = answer
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap()
        .unwrap();
    let tokens: Vec<&[u8]> = chunk.tokens.iter().map(AsRef::as_ref).collect();
    let bytes: Vec<[u8; 1]> = (0..=255).map(|byte| [byte]).collect();
    let expected = bytes.iter().map(<[u8; 1]>::as_slice);
    let expected: Vec<&[u8]> = expected.chain([&b"<|start|>"[..], b"<|end|>"]).collect();
    assert_eq!((chunk.first_id, tokens), (0, expected));
    assert_eq!(
        (chunk.eos_id, chunk.special.iter().filter(|s| **s).count()),
        (Some(257), 2)
    );
    let another = v1::GetVocabularyRequest::default();
    let status = server
        .client(None)
        .get_vocabulary(another)
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "FINGERPRINT_MISMATCH");
    server.stop().await;
}

#[tokio::test]
async fn scored_tokens_are_what_the_plan_says_about_the_same_tokens() {
    let server = start(|settings| settings.batch_size = 1).await;
    let engine = server.service.engine().unwrap();
    let request = to_score(&engine, 0);
    let scored = server
        .client(None)
        .score_tokens(request)
        .await
        .unwrap()
        .into_inner();
    let decode = |block: &v1::Block| {
        let context = FrameContext {
            plan: engine.plan.fingerprint,
            shard: block.shard,
            index: block.index,
        };
        Frame::decode(&block.frame, &context).unwrap()
    };
    let (blocks, _) = server.stream(b"").await;
    assert_eq!(decode(&scored.blocks[0]).rows, decode(&blocks[0]).rows);
    assert_ne!(scored.blocks[0].shard, blocks[0].shard);
    drop(engine);
    server.stop().await;
}

#[tokio::test]
async fn a_unix_socket_serves_health_and_a_stop_ends_streams() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("teacher.sock");
    let bind = format!("unix:{}", path.display());
    let server = start(|settings| {
        settings.bind = bind.parse().unwrap();
        settings.queue = 1;
    })
    .await;
    let mut health = HealthClient::new(server.channel.clone());
    let request = HealthCheckRequest {
        service: "distill.v1.TeacherService".into(),
    };
    let status = health.check(request).await.unwrap().into_inner().status();
    assert_eq!(
        status,
        tonic_health::pb::health_check_response::ServingStatus::Serving
    );
    let request = v1::StreamBlocksRequest {
        cursor: Default::default(),
        plan_fingerprint: server.plan(),
        ..Default::default()
    };
    let mut stream = server
        .client(None)
        .stream_blocks(request)
        .await
        .unwrap()
        .into_inner();
    assert!(stream.message().await.unwrap().is_some());
    server.service.engine().unwrap().production.close();
    let mut last = Ok(Some(v1::StreamBlocksResponse::default()));
    while let Ok(Some(_)) = last {
        last = stream.message().await;
    }
    let status = last.unwrap_err();
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unavailable, "SHUTTING_DOWN")
    );
    server.stop().await;
    assert!(!path.exists());
}
