//! Provides a teacher for tests: made-up frames over loopback, with connections that break, and lies, where a test says.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use distill_proto::{
    Cursor, Estimator, FORMAT_VERSION, Fingerprint, Frame, FrameContext, LeftOut, Rows,
    State as StateRows, StateCoding, StateKind, ValueCoding,
    v1::{
        self, Block, End, GetBasisRequest, GetBasisResponse, GetServerInfoRequest,
        GetServerInfoResponse, Heartbeat, StreamBlocksRequest, StreamBlocksResponse,
        stream_blocks_response::Event,
        teacher_service_server::{TeacherService, TeacherServiceServer},
    },
};
use tokio_stream::{Stream, StreamExt, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status};

use super::ConnectOptions;

/// Effective vocabulary of its frames.
pub const VOCAB_SIZE: u32 = 32;
const RANK: usize = 3;
/// Between two heartbeats of a teacher that never ends.
const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(5);

pub type Message = Result<StreamBlocksResponse, Status>;

/// Changes what is true, by the number of streams opened so far.
type Lie<T> = Box<dyn Fn(usize, &mut T) + Send>;

/// What a test makes it say in place of the truth.
#[derive(Default)]
struct Lies {
    info: Option<Lie<GetServerInfoResponse>>,
    stream: Option<Lie<Vec<Message>>>,
    basis: Option<Lie<Vec<GetBasisResponse>>>,
    scores: Option<Vec<Block>>,
    answer: Option<Vec<Option<v1::generate_response::Event>>>,
    endless_heartbeats: bool,
}

struct State {
    plan: Fingerprint,
    made: Vec<Frame>,
    frames: Vec<Bytes>,
    drops: VecDeque<u64>,
    vocabulary: Fingerprint,
    tokens: Vec<v1::GetVocabularyResponse>,
    streams_opened: usize,
    frames_sent: usize,
    lies: Lies,
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
        view: None,
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
            state: Some(StateRows {
                kind: StateKind::Exact,
                coding: StateCoding::F16,
                rank: RANK,
                layers: 1,
                values: (0..rows * RANK).map(|i| i as f32 / 8.0).collect(),
            }),
        },
    }
}

/// A frame as it is sent.
pub fn encoded(frame: &Frame) -> Bytes {
    let context = FrameContext {
        plan: plan(),
        shard: 0,
        index: frame.index,
    };
    frame.encode(&context).unwrap().into()
}

fn plan() -> Fingerprint {
    Fingerprint::of(b"mock plan")
}

impl MockTeacher {
    /// Serves `count` made-up frames.
    pub async fn start(count: u64) -> Self {
        Self::serve((0..count).map(made_up_frame).collect()).await
    }

    /// Serves these frames, numbered from 0.
    pub async fn serve(frames: Vec<Frame>) -> Self {
        let state = Arc::new(Mutex::new(State {
            plan: plan(),
            frames: frames.iter().map(encoded).collect(),
            made: frames,
            drops: VecDeque::new(),
            vocabulary: Fingerprint::of(b"vocabulary"),
            tokens: vec![],
            streams_opened: 0,
            frames_sent: 0,
            lies: Lies::default(),
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

    /// Lies about itself.
    pub fn lie_about_itself(
        &self,
        lie: impl Fn(usize, &mut GetServerInfoResponse) + Send + 'static,
    ) {
        self.state.lock().unwrap().lies.info = Some(Box::new(lie));
    }

    /// Lies in every stream.
    pub fn lie_in_streams(&self, lie: impl Fn(usize, &mut Vec<Message>) + Send + 'static) {
        self.state.lock().unwrap().lies.stream = Some(Box::new(lie));
    }

    /// Lies about the basis.
    pub fn lie_about_the_basis(
        &self,
        lie: impl Fn(usize, &mut Vec<GetBasisResponse>) + Send + 'static,
    ) {
        self.state.lock().unwrap().lies.basis = Some(Box::new(lie));
    }

    /// Answers every question for scores with these.
    pub fn set_scores(&self, blocks: Vec<Block>) {
        self.state.lock().unwrap().lies.scores = Some(blocks);
    }

    /// Answers every prompt with these.
    pub fn set_answer(&self, events: Vec<Option<v1::generate_response::Event>>) {
        self.state.lock().unwrap().lies.answer = Some(events);
    }

    /// Never ends a stream.
    pub fn send_heartbeats_for_ever(&self) {
        self.state.lock().unwrap().lies.endless_heartbeats = true;
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

    /// Frames that went into streams so far, where they were not left out.
    pub fn frames_sent(&self) -> usize {
        self.state.lock().unwrap().frames_sent
    }

    /// Streams asked for so far.
    pub fn streams_opened(&self) -> usize {
        self.state.lock().unwrap().streams_opened
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

pub fn event(event: Event) -> Message {
    Ok(StreamBlocksResponse { event: Some(event) })
}

impl State {
    fn block(&self, index: u64) -> Block {
        let cursor = Cursor {
            plan: self.plan,
            next: index + 1,
        };
        Block {
            frame: self.frames[index as usize].clone(),
            cursor: cursor.encode().into(),
            shard: 0,
            index,
            ..Block::default()
        }
    }

    /// Takes out the frames that a client leaves out.
    fn leave_out(&mut self, left_out: &LeftOut, sent: &mut [Message]) {
        for message in sent.iter_mut().flatten() {
            match &mut message.event {
                Some(Event::Block(block)) if left_out.has(block.index) => {
                    block.frame.clear();
                    block.sequence_id = self.made[block.index as usize].sequence_id;
                }
                Some(Event::Block(_)) => self.frames_sent += 1,
                _ => {}
            }
        }
    }

    fn end(&self) -> Event {
        let mut digest = blake3::Hasher::new();
        self.frames.iter().for_each(|frame| {
            digest.update(frame);
        });
        Event::End(End {
            count: self.frames.len() as u64,
            digest: digest.finalize().as_bytes().to_vec().into(),
        })
    }

    /// What one connection sends: up to where it breaks, in one of two ways.
    fn connection(&mut self, from: u64) -> Vec<Message> {
        self.streams_opened += 1;
        let count = self.frames.len() as u64;
        let drop = self.drops.pop_front().filter(|&at| at <= count);
        let mut sent = vec![event(Event::Heartbeat(Heartbeat {
            sequences_done: from,
        }))];
        for index in from..drop.unwrap_or(count).max(from) {
            sent.push(event(Event::Block(self.block(index))));
        }
        match drop {
            None => sent.push(event(self.end())),
            // An odd frame: an error status; an even one: the stream just closes.
            Some(at) if at % 2 == 1 => sent.push(Err(Status::unavailable("the connection broke"))),
            Some(_) => {}
        }
        if let Some(lie) = &self.lies.stream {
            lie(self.streams_opened, &mut sent);
        }
        sent
    }

    /// The handshake of its frames.
    fn info(&self) -> GetServerInfoResponse {
        let digest = |name: &str| Fingerprint::of(name.as_bytes()).to_hex();
        let first = self.made.first().map(|frame| &frame.rows);
        let state = first.and_then(|rows| rows.state.as_ref());
        let tokens = self.made.iter().map(|frame| frame.token_ids.len());
        let mut info = GetServerInfoResponse {
            format_version: FORMAT_VERSION,
            model_fingerprint: digest("model"),
            tokenizer_fingerprint: digest("tokenizer"),
            vocabulary_fingerprint: self.vocabulary.to_hex(),
            corpus_fingerprint: digest("corpus"),
            plan_fingerprint: self.plan.to_hex(),
            effective_vocab_size: VOCAB_SIZE,
            head_rows: VOCAB_SIZE + 8,
            tokenizer_size: VOCAB_SIZE,
            top_k: self
                .made
                .iter()
                .map(|frame| frame.rows.k)
                .max()
                .unwrap_or(1) as u32,
            estimator: v1::Estimator::TopK.into(),
            temperatures: vec![1.0],
            state_kind: state
                .map_or(v1::StateKind::None, |state| state.kind.into())
                .into(),
            state_rank: state.map_or(0, |state| state.rank as u32),
            sequence_count: self.made.len() as u64,
            seq_len: tokens.clone().max().unwrap_or(0) as u32,
            token_count: tokens.sum::<usize>() as u64,
            target_count: self.made.iter().map(|frame| frame.rows.rows as u64).sum(),
            model_name: "a-teacher".into(),
            ..Default::default()
        };
        if let Some(lie) = &self.lies.info {
            lie(self.streams_opened, &mut info);
        }
        info
    }
}

#[tonic::async_trait]
impl TeacherService for Service {
    type StreamBlocksStream = Responses<StreamBlocksResponse>;
    type GetBasisStream = Responses<GetBasisResponse>;
    type GetVocabularyStream = Responses<v1::GetVocabularyResponse>;
    type FetchBlocksStream = Responses<v1::FetchBlocksResponse>;
    type GenerateStream = Responses<v1::GenerateResponse>;
    type HoldDeviceStream = Responses<v1::HoldDeviceResponse>;

    async fn get_server_info(
        &self,
        _: Request<GetServerInfoRequest>,
    ) -> Result<Response<GetServerInfoResponse>, Status> {
        Ok(Response::new(self.0.lock().unwrap().info()))
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
        let mut sent = state.connection(cursor.next);
        let left_out = LeftOut::new(cursor.next, request.left_out);
        state.leave_out(&left_out, &mut sent);
        let sent = tokio_stream::iter(sent);
        if !state.lies.endless_heartbeats {
            return Ok(Response::new(Box::pin(sent)));
        }
        let beat = || event(Event::Heartbeat(Heartbeat { sequences_done: 0 }));
        let beats = tokio_stream::iter(std::iter::repeat_with(beat)).throttle(HEARTBEAT_INTERVAL);
        Ok(Response::new(Box::pin(beats)))
    }

    async fn get_basis(
        &self,
        _: Request<GetBasisRequest>,
    ) -> Result<Response<Self::GetBasisStream>, Status> {
        let values: Vec<u8> = (0..VOCAB_SIZE as usize * RANK)
            .flat_map(|i| half::f16::from_f32(i as f32).to_le_bytes())
            .collect();
        let rows_a_chunk = 10;
        let mut chunks: Vec<_> = values
            .chunks(rows_a_chunk * RANK * 2)
            .enumerate()
            .map(|(chunk, bytes)| GetBasisResponse {
                rows: (bytes.len() / RANK / 2) as u32,
                rank: RANK as u32,
                first_row: (chunk * rows_a_chunk) as u32,
                values_f16: bytes.to_vec().into(),
            })
            .collect();
        if let Some(lie) = &self.0.lock().unwrap().lies.basis {
            lie(0, &mut chunks);
        }
        let chunks = chunks.into_iter().map(Ok);
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
        match self.0.lock().unwrap().lies.scores.clone() {
            Some(blocks) => Ok(Response::new(v1::ScoreTokensResponse { blocks })),
            None => Err(Status::unimplemented("not in this mock")),
        }
    }

    async fn generate(
        &self,
        _: Request<v1::GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        match self.0.lock().unwrap().lies.answer.clone() {
            Some(events) => {
                let messages = events
                    .into_iter()
                    .map(|event| Ok(v1::GenerateResponse { event }));
                let messages: Vec<_> = messages.collect();
                Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
            }
            None => Err(Status::unimplemented("not in this mock")),
        }
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
