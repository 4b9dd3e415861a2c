//! Provides an S3 server in this process: `s3s-fs` over a folder, with what a race of writers needs to mean something.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

use anyhow::Result;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use s3s::{
    S3, S3Request, S3Response, S3Result,
    auth::SimpleAuth,
    dto::{
        DeleteObjectInput, DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput,
        GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput, ListObjectsV2Input,
        ListObjectsV2Output, PutObjectInput, PutObjectOutput,
    },
    s3_error,
    service::S3ServiceBuilder,
};
use s3s_fs::FileSystem;
use tokio::{net::TcpListener, runtime::Runtime, sync::Mutex};

/// Whose requests are answered, and with which signature.
pub const KEY: &str = "the-key-of-a-test";
/// The signature's secret, which no program may show.
pub const SECRET: &str = "the-secret-of-a-test";
/// The only bucket.
pub const BUCKET: &str = "bucket";

/// A server, until it is dropped.
pub struct Storage {
    address: SocketAddr,
    folder: PathBuf,
    refused: Arc<Refused>,
    _runtime: Runtime,
}

/// A part of the names of objects that nobody may make.
type Refused = std::sync::Mutex<Option<&'static str>>;

/// `s3s-fs` looks whether a name is free and then writes: between the two another writer might.
struct OneWriter {
    files: FileSystem,
    writing: Mutex<()>,
    refused: Arc<Refused>,
}

impl Storage {
    /// Serves `folder`, whose folders are the buckets, on `address`.
    ///
    /// # Errors
    /// A folder that cannot be made, or an address that is taken.
    pub fn serve(folder: &Path, address: &str) -> Result<Self> {
        std::fs::create_dir_all(folder.join(BUCKET))?;
        let files = FileSystem::new(folder).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let refused = Arc::new(Refused::default());
        let mut service = S3ServiceBuilder::new(OneWriter {
            files,
            writing: Mutex::new(()),
            refused: refused.clone(),
        });
        service.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = service.build();
        let runtime = Runtime::new()?;
        let listener = runtime.block_on(TcpListener::bind(address))?;
        let address = listener.local_addr()?;
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let server = auto::Builder::new(TokioExecutor::new());
                    // A client may leave at any time.
                    let _ = server.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Ok(Self {
            address,
            folder: folder.to_owned(),
            refused,
            _runtime: runtime,
        })
    }

    /// What a program has to find in its environment.
    pub fn variables(&self) -> [(&'static str, String); 4] {
        [
            ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
            ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ]
    }

    /// From now on, objects with this in their names cannot be made; none is refused where it is `None`.
    pub fn refuse(&self, part: Option<&'static str>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = part;
    }

    /// The file that holds what was put at `s3://bucket/NAME`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(BUCKET).join(name)
    }
}

#[async_trait::async_trait]
impl S3 for OneWriter {
    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        self.files.get_object(request).await
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        self.files.head_object(request).await
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.files.list_objects_v2(request).await
    }

    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let refused = *self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.is_some_and(|part| request.input.key.contains(part)) {
            return Err(s3_error!(AccessDenied, "not allowed here"));
        }
        let _alone = self.writing.lock().await;
        self.files.put_object(request).await
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let _alone = self.writing.lock().await;
        self.files.delete_object(request).await
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let _alone = self.writing.lock().await;
        self.files.delete_objects(request).await
    }
}
