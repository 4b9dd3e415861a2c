/*! Provides `distill.v1.TeacherService` over a loaded engine.

```text
 request ──> auth ──> TeacherService ──┬── blocks: StreamBlocks, FetchBlocks ──> production::Reader
                                       ├── basis:  GetBasis                 ──> basis::Basis
                                       ├── vocabulary: GetVocabulary        ──> Engine::tokens
                       └── score:  ScoreTokens              ──> Production::score
 Error ──> status ──> tonic::Status with google.rpc.ErrorInfo
```
*/

mod auth;
mod blocks;
mod hold;
mod score;
mod status;
mod vocabulary;

use std::sync::{Arc, OnceLock};

use distill_proto::{
    Fingerprint,
    v1::{self, teacher_service_server::TeacherService},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{Error, Result, load::Engine};
pub use auth::Auth;
pub use status::{ERROR_DOMAIN, status};
pub use vocabulary::chunks as vocabulary_chunks;

/// Messages that wait between a stream's task and its connection; HTTP/2 flow control holds the rest back.
const STREAM_MESSAGES: usize = 1;
/// Characters of a client's fingerprint that are repeated to it.
const ECHO_CHARS_MAX: usize = 64;

/// What a streaming call answers with.
type Messages<T> = ReceiverStream<std::result::Result<T, Status>>;

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
        text => text.chars().take(ECHO_CHARS_MAX).collect(),
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
        let request = request.into_inner();
        let engine = self.agreed(&request.plan_fingerprint)?;
        Ok(Response::new(blocks::stream(&engine, &request.cursor)?))
    }

    async fn get_basis(
        &self,
        request: Request<v1::GetBasisRequest>,
    ) -> std::result::Result<Response<Self::GetBasisStream>, Status> {
        let engine = self.agreed(&request.into_inner().plan_fingerprint)?;
        let none = || match engine.info.state_layer as usize {
            0 => Error::NoState,
            layer => Error::NoBasis { layer },
        };
        let basis = engine.basis.clone().ok_or_else(none)?;
        let (sender, receiver) = mpsc::channel(STREAM_MESSAGES);
        let rank = basis.rank() as u32;
        // On a thread of its own: widening a chunk of the head takes milliseconds. It ends with the client.
        tokio::task::spawn_blocking(move || {
            for rows in basis.chunks() {
                let message = basis.bytes(rows.clone()).map_err(Status::from);
                let message = message.map(|values_f16| v1::GetBasisResponse {
                    rows: rows.len() as u32,
                    rank,
                    first_row: rows.start as u32,
                    values_f16,
                });
                if sender.blocking_send(message).is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
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
        let request = request.into_inner();
        let engine = self.agreed(&request.plan_fingerprint)?;
        Ok(Response::new(blocks::fetch(
            &engine,
            &request.sequence_ids,
        )?))
    }

    async fn score_tokens(
        &self,
        request: Request<v1::ScoreTokensRequest>,
    ) -> std::result::Result<Response<v1::ScoreTokensResponse>, Status> {
        let engine = self.engine()?;
        let response = score::score(&engine, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn hold_device(
        &self,
        request: Request<v1::HoldDeviceRequest>,
    ) -> std::result::Result<Response<Self::HoldDeviceStream>, Status> {
        let stream = hold::stream(self.engine()?, &request.into_inner())?;
        Ok(Response::new(stream))
    }

    async fn release_device(
        &self,
        request: Request<v1::ReleaseDeviceRequest>,
    ) -> std::result::Result<Response<v1::ReleaseDeviceResponse>, Status> {
        let epoch = request.into_inner().epoch;
        self.engine()?.production.release(epoch)?;
        Ok(Response::new(v1::ReleaseDeviceResponse {}))
    }
}

#[cfg(test)]
mod tests;
