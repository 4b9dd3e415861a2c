//! Provides a teacher for tests: made-up frames over loopback, with connections that break where a test says.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use distill_proto::{
    Cursor, Estimator, FORMAT_VERSION, Fingerprint, Frame, FrameContext, Rows, ValueCoding,
    v1::{
        self, Block, End, GetBasisRequest, GetBasisResponse, GetServerInfoRequest,
        GetServerInfoResponse, Heartbeat, StreamBlocksRequest, StreamBlocksResponse,
        stream_blocks_response::Event,
        teacher_service_server::{TeacherService, TeacherServiceServer},
    },
};
use tokio_stream::{Stream, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status};

use super::ConnectOptions;

/// Effective vocabulary of its frames.
pub const VOCAB_SIZE: u32 = 32;
const RANK: usize = 3;

/// What is wrong with the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// One bit of frame 1.
    FlipBit,
    /// Frame 1 comes twice.
    Repeat,
    /// The digest at the end.
    WrongDigest,
    /// The count at the end.
    WrongCount,
}

#[derive(Debug)]
struct State {
    plan: Fingerprint,
    frames: Vec<Bytes>,
    drops: VecDeque<u64>,
    damage: Option<Damage>,
    change_plan: bool,
    vocabulary: Fingerprint,
    tokens: Vec<v1::GetVocabularyResponse>,
    streams_opened: usize,
}

/// A teacher on a free loopback port; it stops with the test's runtime.
pub struct MockTeacher {
    address: String,
    state: Arc<Mutex<State>>,
}

#[derive(Clone)]
struct Service(Arc<Mutex<State>>);

/// A sequence of `index + 2` tokens, all but the first targets.
pub fn made_up_frame(index: u64) -> Frame {
    let rows = index as usize + 1;
    let k = 4;
    let text = "x".repeat(rows + 1);
    Frame {
        sequence_id: 1000 + index,
        index,
        text_digest: Fingerprint::of(text.as_bytes()),
        byte_offsets: (0..=rows as u32).map(|t| (t, t + 1)).collect(),
        token_ids: (0..=rows as u32)
            .map(|t| (t * 7 + index as u32) % VOCAB_SIZE)
            .collect(),
        target_mask: (0..=rows).map(|t| t > 0).collect(),
        text,
        rows: Rows {
            rows,
            k,
            vocab_size: VOCAB_SIZE,
            estimator: Estimator::TopK,
            coding: ValueCoding::Step(0.125),
            ids: (0..rows).flat_map(|_| [1, 5, 9, 30]).collect(),
            logits: (0..rows).flat_map(|_| [3.0, 2.0, 1.0, 0.5]).collect(),
            counts: vec![],
            max: vec![3.0; rows],
            mean: vec![0.0; rows],
            std: vec![1.0; rows],
            temperatures: vec![1.0],
            logsumexp: vec![vec![4.0; rows]],
            state: None,
        },
    }
}

impl MockTeacher {
    /// Serves `count` made-up frames.
    pub async fn start(count: u64) -> Self {
        Self::serve((0..count).map(made_up_frame).collect()).await
    }

    /// Serves these frames, numbered from 0.
    pub async fn serve(frames: Vec<Frame>) -> Self {
        let plan = Fingerprint::of(b"mock plan");
        let encode = |frame: &Frame| {
            let context = FrameContext {
                plan,
                shard: 0,
                index: frame.index,
            };
            Bytes::from(frame.encode(&context).unwrap())
        };
        let state = Arc::new(Mutex::new(State {
            plan,
            frames: frames.iter().map(encode).collect(),
            drops: VecDeque::new(),
            damage: None,
            change_plan: false,
            vocabulary: Fingerprint::of(b"vocabulary"),
            tokens: vec![],
            streams_opened: 0,
        }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<TeacherServiceServer<Service>>().await;
        let server = tonic::transport::Server::builder()
            .add_service(health_service)
            .add_service(TeacherServiceServer::new(Service(state.clone())))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        Self { address, state }
    }

    /// How to reach it.
    pub fn connect_options(&self) -> ConnectOptions {
        ConnectOptions {
            address: self.address.clone(),
            ca_cert: None,
            token_file: None,
            timeout: Duration::from_secs(20),
        }
    }

    /// Breaks the first connection before the first of these frames, the second before the second, and so on; the frame
    /// after the last one means the end message, and one after that that it holds.
    pub fn drop_before_frames(&self, frames: impl IntoIterator<Item = u64>) {
        self.state.lock().unwrap().drops.extend(frames);
    }

    /// Spoils every stream.
    pub fn damage(&self, damage: Damage) {
        self.state.lock().unwrap().damage = Some(damage);
    }

    /// Serves another plan from the first broken connection on.
    pub fn change_plan_after_drop(&self) {
        self.state.lock().unwrap().change_plan = true;
    }

    /// Says that its vocabulary is this one.
    pub fn set_vocabulary(&self, vocabulary: Fingerprint) {
        self.state.lock().unwrap().vocabulary = vocabulary;
    }

    /// Answers GetVocabulary with these chunks.
    pub fn set_tokens(&self, chunks: Vec<v1::GetVocabularyResponse>) {
        self.state.lock().unwrap().tokens = chunks;
    }

    /// The frames as they are sent.
    pub fn frames(&self) -> Vec<Bytes> {
        self.state.lock().unwrap().frames.clone()
    }

    /// Streams asked for so far.
    pub fn streams_opened(&self) -> usize {
        self.state.lock().unwrap().streams_opened
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn event(event: Event) -> Result<StreamBlocksResponse, Status> {
    Ok(StreamBlocksResponse { event: Some(event) })
}

impl State {
    fn block(&self, index: u64) -> Block {
        let mut frame = self.frames[index as usize].to_vec();
        if self.damage == Some(Damage::FlipBit) && index == 1 {
            let middle = frame.len() / 2;
            frame[middle] ^= 4;
        }
        let cursor = Cursor {
            plan: self.plan,
            next: index + 1,
        };
        Block {
            frame: frame.into(),
            cursor: cursor.encode().into(),
            shard: 0,
            index,
        }
    }

    fn end(&self) -> Event {
        let mut digest = blake3::Hasher::new();
        self.frames.iter().for_each(|frame| {
            digest.update(frame);
        });
        let wrong = |damage| u64::from(self.damage == Some(damage));
        digest.update(&vec![0; wrong(Damage::WrongDigest) as usize]);
        Event::End(End {
            count: self.frames.len() as u64 + wrong(Damage::WrongCount),
            digest: digest.finalize().as_bytes().to_vec().into(),
        })
    }

    /// What one connection sends: up to where it breaks, in one of two ways.
    fn connection(&mut self, from: u64) -> Vec<Result<StreamBlocksResponse, Status>> {
        self.streams_opened += 1;
        let count = self.frames.len() as u64;
        let drop = self.drops.pop_front().filter(|&at| at <= count);
        let mut sent = vec![event(Event::Heartbeat(Heartbeat {
            sequences_done: from,
        }))];
        for index in from..drop.unwrap_or(count).max(from) {
            sent.push(event(Event::Block(self.block(index))));
            if self.damage == Some(Damage::Repeat) && index == 1 {
                sent.push(event(Event::Block(self.block(index))));
            }
        }
        match drop {
            None => sent.push(event(self.end())),
            // An odd frame: an error status; an even one: the stream just closes.
            Some(at) if at % 2 == 1 => sent.push(Err(Status::unavailable("the connection broke"))),
            Some(_) => {}
        }
        if drop.is_some() && self.change_plan {
            self.plan = Fingerprint::of(b"another plan");
        }
        sent
    }
}

#[tonic::async_trait]
impl TeacherService for Service {
    type StreamBlocksStream = Responses<StreamBlocksResponse>;
    type GetBasisStream = Responses<GetBasisResponse>;
    type GetVocabularyStream = Responses<v1::GetVocabularyResponse>;
    type FetchBlocksStream = Responses<v1::FetchBlocksResponse>;
    type HoldDeviceStream = Responses<v1::HoldDeviceResponse>;

    async fn get_server_info(
        &self,
        _: Request<GetServerInfoRequest>,
    ) -> Result<Response<GetServerInfoResponse>, Status> {
        let state = self.0.lock().unwrap();
        let digest = |name: &str| Fingerprint::of(name.as_bytes()).to_hex();
        Ok(Response::new(GetServerInfoResponse {
            format_version: FORMAT_VERSION,
            model_fingerprint: digest("model"),
            tokenizer_fingerprint: digest("tokenizer"),
            vocabulary_fingerprint: state.vocabulary.to_hex(),
            corpus_fingerprint: digest("corpus"),
            plan_fingerprint: state.plan.to_hex(),
            effective_vocab_size: VOCAB_SIZE,
            head_rows: VOCAB_SIZE + 8,
            tokenizer_size: VOCAB_SIZE,
            top_k: 4,
            estimator: v1::Estimator::TopK.into(),
            temperatures: vec![1.0],
            state_kind: v1::StateKind::Exact.into(),
            state_rank: RANK as u32,
            sequence_count: state.frames.len() as u64,
            seq_len: distill_text::limits::SEQ_LEN_MIN as u32,
            model_name: "a-teacher".into(),
            ..Default::default()
        }))
    }

    async fn stream_blocks(
        &self,
        request: Request<StreamBlocksRequest>,
    ) -> Result<Response<Self::StreamBlocksStream>, Status> {
        let request = request.into_inner();
        let mut state = self.0.lock().unwrap();
        if request.plan_fingerprint != state.plan.to_hex() {
            return Err(Status::failed_precondition("another plan"));
        }
        let cursor = Cursor::decode(&request.cursor, state.plan)
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let sent = state.connection(cursor.next);
        Ok(Response::new(Box::pin(tokio_stream::iter(sent))))
    }

    async fn get_basis(
        &self,
        _: Request<GetBasisRequest>,
    ) -> Result<Response<Self::GetBasisStream>, Status> {
        let values: Vec<u8> = (0..VOCAB_SIZE as usize * RANK)
            .flat_map(|i| half::f16::from_f32(i as f32).to_le_bytes())
            .collect();
        let rows_a_chunk = 10;
        let chunks: Vec<_> = values
            .chunks(rows_a_chunk * RANK * 2)
            .enumerate()
            .map(|(chunk, bytes)| {
                Ok(GetBasisResponse {
                    rows: (bytes.len() / RANK / 2) as u32,
                    rank: RANK as u32,
                    first_row: (chunk * rows_a_chunk) as u32,
                    values_f16: bytes.to_vec().into(),
                })
            })
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }

    async fn get_vocabulary(
        &self,
        _: Request<v1::GetVocabularyRequest>,
    ) -> Result<Response<Self::GetVocabularyStream>, Status> {
        let chunks = self.0.lock().unwrap().tokens.clone();
        let chunks = chunks.into_iter().map(Ok);
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }

    async fn fetch_blocks(
        &self,
        _: Request<v1::FetchBlocksRequest>,
    ) -> Result<Response<Self::FetchBlocksStream>, Status> {
        Err(Status::unimplemented("not in this mock"))
    }

    async fn score_tokens(
        &self,
        _: Request<v1::ScoreTokensRequest>,
    ) -> Result<Response<v1::ScoreTokensResponse>, Status> {
        Err(Status::unimplemented("not in this mock"))
    }

    async fn hold_device(
        &self,
        _: Request<v1::HoldDeviceRequest>,
    ) -> Result<Response<Self::HoldDeviceStream>, Status> {
        Err(Status::unimplemented("not in this mock"))
    }

    async fn release_device(
        &self,
        _: Request<v1::ReleaseDeviceRequest>,
    ) -> Result<Response<v1::ReleaseDeviceResponse>, Status> {
        Err(Status::unimplemented("not in this mock"))
    }
}
