/*! Provides `distill.v1.TeacherService` over a loaded engine.

```text
 request ──> auth ──> TeacherService ──┬── blocks: StreamBlocks, FetchBlocks ──> production::Reader
                                       ├── basis:  GetBasis                 ──> basis::Basis
                                       ├── vocabulary: GetVocabulary        ──> Engine::tokens
                                       ├── score:  ScoreTokens              ──> Production::score
                                       └── generate: Generate               ──> answers, Production::answer
 Error ──> status ──> tonic::Status with google.rpc.ErrorInfo
```
*/
#![cfg_attr(
    not(test),
    deny(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss
    )
)]

mod auth;
mod basis;
mod blocks;
mod generate;
mod hold;
mod score;
mod status;
mod vocabulary;

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
};

use distill_proto::{
    Fingerprint,
    v1::{self, teacher_service_server::TeacherService},
};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::{
    Error, Result,
    connections::{Client, Share},
    lease::Grant,
    load::Engine,
    printable::printable,
};
pub use auth::Auth;
pub use status::{ERROR_DOMAIN, status};

/// Characters of a client's fingerprint that are repeated to it.
const ECHO_CHARS_MAX: usize = 64;

/// What a streaming call answers with.
type Messages<T> = Pin<Box<dyn Stream<Item = std::result::Result<T, Status>> + Send>>;

/// Where the messages of a streaming call come from.
trait Source<T>: Send + 'static {
    /// Makes the next message, `None` after the last one. Not called before the connection has room for it, so that a client
    /// which takes nothing costs nothing, and not called any more once the client is gone.
    fn next(&mut self) -> impl Future<Output = Result<Option<T>>> + Send;
}

fn messages<T: Send + 'static, S: Source<T>>(source: S) -> Messages<T> {
    let source = Arc::new(tokio::sync::Mutex::new(source));
    let next = |source: Arc<tokio::sync::Mutex<S>>| async move {
        let message = source.lock().await.next().await;
        message.map_err(Status::from).transpose()
    };
    let turns = tokio_stream::iter(std::iter::repeat(source));
    Box::pin(turns.then(next).map_while(|message| message))
}

/// The gRPC service; answers `UNAVAILABLE` until the engine is set.
#[derive(Clone, Default)]
pub struct Service {
    engine: Arc<OnceLock<Arc<Engine>>>,
}

impl Service {
    /// The weights are in.
    pub fn set_engine(&self, engine: Arc<Engine>) {
        if self.engine.set(engine).is_err() {
            tracing::error!("the engine was set twice; the first one stays");
        }
    }

    /// What is loaded, if anything is.
    pub fn engine(&self) -> Result<Arc<Engine>> {
        self.engine.get().cloned().ok_or(Error::Loading)
    }

    /// The engine, for a client that agreed to its plan.
    fn agreed(&self, plan: &str) -> Result<Arc<Engine>> {
        let engine = self.engine()?;
        check_fingerprint(
            "plan",
            &[engine.plan.fingerprint],
            plan,
            "call GetServerInfo and use its plan_fingerprint; cached blocks and checkpoints of the other plan need the server they came from",
        )?;
        Ok(engine)
    }
}

/// Compares what a client agreed to with what is served; the first of `served` is the one to name.
fn check_fingerprint(
    what: &'static str,
    served: &[Fingerprint],
    requested: &str,
    remedy: &'static str,
) -> Result<()> {
    if Fingerprint::from_hex(requested).is_some_and(|found| served.contains(&found)) {
        return Ok(());
    }
    let served = served.first().copied().unwrap_or_default();
    let requested = match requested {
        "" => "none".to_owned(),
        text => printable(text, ECHO_CHARS_MAX),
    };
    Err(Error::FingerprintMismatch {
        what,
        served,
        requested,
        remedy,
    })
}

#[tonic::async_trait]
impl TeacherService for Service {
    type StreamBlocksStream = Messages<v1::StreamBlocksResponse>;
    type GetBasisStream = Messages<v1::GetBasisResponse>;
    type GetVocabularyStream = Messages<v1::GetVocabularyResponse>;
    type FetchBlocksStream = Messages<v1::FetchBlocksResponse>;
    type GenerateStream = Messages<v1::GenerateResponse>;
    type HoldDeviceStream = Messages<v1::HoldDeviceResponse>;

    async fn get_server_info(
        &self,
        _request: Request<v1::GetServerInfoRequest>,
    ) -> std::result::Result<Response<v1::GetServerInfoResponse>, Status> {
        Ok(Response::new(self.engine()?.info.clone()))
    }

    async fn stream_blocks(
        &self,
        request: Request<v1::StreamBlocksRequest>,
    ) -> std::result::Result<Response<Self::StreamBlocksStream>, Status> {
        let ticket = Client::of(&request).take(Share::Readers)?;
        let request = request.into_inner();
        let engine = self.agreed(&request.plan_fingerprint)?;
        let blocks = blocks::stream(&engine, request, ticket)?;
        Ok(Response::new(blocks))
    }

    async fn get_basis(
        &self,
        request: Request<v1::GetBasisRequest>,
    ) -> std::result::Result<Response<Self::GetBasisStream>, Status> {
        let engine = self.agreed(&request.into_inner().plan_fingerprint)?;
        let none = || match engine.info.state_kind() {
            v1::StateKind::Hidden => Error::NoBasis {
                layers: engine.info.state_layers.clone(),
            },
            _ => Error::NoState,
        };
        let basis = engine.basis.clone().ok_or_else(none)?;
        Ok(Response::new(basis::stream(basis)))
    }

    async fn get_vocabulary(
        &self,
        request: Request<v1::GetVocabularyRequest>,
    ) -> std::result::Result<Response<Self::GetVocabularyStream>, Status> {
        let engine = self.agreed(&request.into_inner().plan_fingerprint)?;
        Ok(Response::new(vocabulary::stream(engine.tokens.clone())))
    }

    async fn fetch_blocks(
        &self,
        request: Request<v1::FetchBlocksRequest>,
    ) -> std::result::Result<Response<Self::FetchBlocksStream>, Status> {
        let ticket = Client::of(&request).take(Share::Readers)?;
        let request = request.into_inner();
        let engine = self.agreed(&request.plan_fingerprint)?;
        let blocks = blocks::fetch(&engine, &request.sequence_ids, ticket)?;
        Ok(Response::new(blocks))
    }

    async fn score_tokens(
        &self,
        request: Request<v1::ScoreTokensRequest>,
    ) -> std::result::Result<Response<v1::ScoreTokensResponse>, Status> {
        let engine = self.engine()?;
        let client = Client::of(&request);
        let ticket = client.take(Share::Scores)?;
        let scores = score::score(&engine, client.id(), request.into_inner()).await?;
        let mut response = Response::new(scores);
        // Given back when the transport has the answer.
        response.extensions_mut().insert(Arc::new(ticket));
        Ok(response)
    }

    async fn generate(
        &self,
        request: Request<v1::GenerateRequest>,
    ) -> std::result::Result<Response<Self::GenerateStream>, Status> {
        let ticket = Client::of(&request).take(Share::Answers)?;
        let engine = self.engine()?;
        let answer = generate::stream(&engine, request.into_inner(), ticket).await?;
        Ok(Response::new(answer))
    }

    async fn hold_device(
        &self,
        request: Request<v1::HoldDeviceRequest>,
    ) -> std::result::Result<Response<Self::HoldDeviceStream>, Status> {
        let ticket = Client::of(&request).take(Share::Holds)?;
        let stream = hold::stream(self.engine()?, &request.into_inner(), ticket)?;
        Ok(Response::new(stream))
    }

    async fn release_device(
        &self,
        request: Request<v1::ReleaseDeviceRequest>,
    ) -> std::result::Result<Response<v1::ReleaseDeviceResponse>, Status> {
        let request = request.into_inner();
        if request.secret.is_empty() {
            return Err(Error::NoSecret.into());
        }
        let grant = Grant {
            epoch: request.epoch,
            secret: &request.secret,
        };
        self.engine()?.production.release(grant)?;
        Ok(Response::new(v1::ReleaseDeviceResponse {}))
    }
}

#[cfg(test)]
mod tests;
