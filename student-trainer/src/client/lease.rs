//! Provides the lease of a device that the teacher shares: taken, watched, given back, and kept across lost connections.

use std::time::{Duration, Instant};

use distill_proto::v1::{
    Granted, HoldDeviceRequest, HoldDeviceResponse, ReleaseDeviceRequest,
    hold_device_response::Event,
};
use tokio::{runtime::Handle, sync::watch, task::JoinHandle};
use tonic::{Code, Status, Streaming};

use super::{Teacher, retry};
use crate::{Result, shutdown::Shutdown};

/// Between two attempts to come back to a teacher that has gone away: it keeps the device for its holder for some seconds only.
const RETURN_INTERVAL: Duration = Duration::from_millis(500);
/// One attempt to give the device back; after it the closed stream has to do.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two messages that the device is still another's.
const REPORT_INTERVAL: Duration = Duration::from_secs(30);

/// The device is this process's. There is no `Debug`, so that no log shows the grant's secret.
#[derive(Clone)]
struct Held {
    grant: Granted,
    /// Since when it is to be given back.
    give_back: Option<Instant>,
}

/// The lease of the device that a teacher in swap mode shares.
pub struct DeviceLease {
    runtime: Handle,
    teacher: Teacher,
    holder: String,
    /// Attempts without an answer in a row before giving up.
    attempts: u32,
    held: Option<(watch::Receiver<Held>, JoinHandle<()>)>,
}

impl DeviceLease {
    /// Holds nothing yet. `holder` is what others are told.
    pub fn new(runtime: Handle, teacher: Teacher, holder: String, attempts: u32) -> Self {
        Self {
            runtime,
            teacher,
            holder,
            attempts,
            held: None,
        }
    }

    /// Waits for the device. False after a shutdown.
    ///
    /// # Errors
    /// A refusal, or a teacher that stays away.
    pub async fn acquire(&mut self, shutdown: &Shutdown) -> Result<bool> {
        let granted = tokio::select! {
            granted = self.wait_for_grant(shutdown) => granted.map(Some)?,
            () = shutdown.requested() => None,
        };
        let Some((grant, stream)) = granted else {
            return Ok(false);
        };
        tracing::info!("device: taken (epoch {})", grant.epoch);
        let give_back = None;
        let (sender, receiver) = watch::channel(Held { grant, give_back });
        let watching = Watch {
            teacher: self.teacher.clone(),
            holder: self.holder.clone(),
            held: sender,
        };
        let task = self.runtime.spawn(watching.run(stream));
        self.held = Some((receiver, task));
        Ok(true)
    }

    /// Since when the device is to be given back, if it is.
    pub fn give_back_since(&self) -> Option<Instant> {
        let (held, _) = self.held.as_ref()?;
        held.borrow().give_back
    }

    /// Returns once the device is to be given back; never where it is not held.
    pub async fn to_give_back(&self) {
        if let Some((held, _)) = &self.held {
            let mut held = held.clone();
            // The watching task may end; what it said last stands.
            if held.wait_for(|held| held.give_back.is_some()).await.is_ok() {
                return;
            }
        }
        std::future::pending().await
    }

    /// Gives the device back. Everything on it must be freed before.
    pub fn release(&mut self) {
        let Some((held, task)) = self.held.take() else {
            return;
        };
        let Granted { epoch, secret } = held.borrow().grant.clone();
        tracing::info!("device: left (epoch {epoch})");
        let mut service = self.teacher.service();
        let said = self.runtime.block_on(async {
            let said = service.release_device(ReleaseDeviceRequest { epoch, secret });
            let said = tokio::time::timeout(RELEASE_TIMEOUT, said).await;
            task.abort();
            said
        });
        match said {
            Ok(Ok(_)) => {}
            Ok(Err(status)) => {
                tracing::debug!("ReleaseDevice failed: {}", retry::describe(&status));
            }
            Err(_) => tracing::debug!("ReleaseDevice got no answer"),
        }
    }

    async fn wait_for_grant(
        &self,
        shutdown: &Shutdown,
    ) -> Result<(Granted, Streaming<HoldDeviceResponse>)> {
        let mut failures = 0;
        loop {
            let lost = match ask(&self.teacher, &self.holder, Granted::default()).await {
                Ok(granted) => return Ok(granted),
                Err(status) if retry::is_transient(status.code()) => status,
                Err(status) => return Err(self.teacher.failed("HoldDevice", &status)),
            };
            failures += 1;
            if failures > self.attempts {
                return Err(self.teacher.failed("HoldDevice", &lost));
            }
            tracing::warn!(
                "lost the place in the line for the device: {}; asking again ({failures} of {})",
                retry::describe(&lost),
                self.attempts
            );
            tokio::time::sleep(retry::delay(failures)).await;
            self.teacher.wait_until_serving(shutdown).await?;
        }
    }
}

impl Drop for DeviceLease {
    /// The stream ends with its task; the teacher then waits a while for this process to come back.
    fn drop(&mut self) {
        if let Some((_, task)) = &self.held {
            task.abort();
        }
    }
}

/// Asks for the device, which is `held` where its epoch is not 0, and waits until it is granted.
async fn ask(
    teacher: &Teacher,
    holder: &str,
    held: Granted,
) -> std::result::Result<(Granted, Streaming<HoldDeviceResponse>), Status> {
    let request = HoldDeviceRequest {
        holder: holder.to_owned(),
        epoch_held: held.epoch,
        secret: held.secret,
        keeps_secret: true,
    };
    let asked = Instant::now();
    let mut stream = teacher.service().hold_device(request).await?.into_inner();
    loop {
        let message = match tokio::time::timeout(REPORT_INTERVAL, stream.message()).await {
            Ok(message) => message?,
            Err(_) => {
                let seconds = asked.elapsed().as_secs();
                tracing::info!("waiting for the device, which another has ({seconds} s)");
                continue;
            }
        };
        match message.map(|message| message.event) {
            Some(Some(Event::Granted(granted))) => return Ok((granted, stream)),
            Some(_) => {}
            None => return Err(Status::unavailable("the stream closed before a grant")),
        }
    }
}

/// Listens while the device is held.
struct Watch {
    teacher: Teacher,
    holder: String,
    held: watch::Sender<Held>,
}

impl Watch {
    async fn run(self, mut stream: Streaming<HoldDeviceResponse>) {
        loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    if matches!(message.event, Some(Event::Yield(_))) {
                        self.give_back();
                    }
                }
                Ok(None) => stream = self.come_back("it closed").await,
                Err(status) if status.code() == Code::FailedPrecondition => {
                    return self.lost(&status).await;
                }
                Err(status) => stream = self.come_back(&retry::describe(&status)).await,
            }
        }
    }

    fn give_back(&self) {
        self.held.send_modify(|held| {
            held.give_back.get_or_insert_with(Instant::now);
        });
    }

    /// The device is another's: what is on it has to go.
    async fn lost(&self, status: &Status) {
        tracing::warn!("the device's lease is over: {}", retry::describe(status));
        self.give_back();
        // The sender has to live for as long as somebody may look.
        std::future::pending().await
    }

    /// Tells the teacher, once it is there again, that the device is still held.
    async fn come_back(&self, why: &str) -> Streaming<HoldDeviceResponse> {
        tracing::warn!("lost the device's lease while holding it: {why}; the step goes on");
        loop {
            let held = self.held.borrow().grant.clone();
            match ask(&self.teacher, &self.holder, held).await {
                Ok((grant, stream)) => {
                    tracing::info!("device: kept (epoch {})", grant.epoch);
                    // A yield that was asked for before is asked for again where it is still needed.
                    self.held.send_replace(Held {
                        grant,
                        give_back: None,
                    });
                    return stream;
                }
                Err(status) if status.code() == Code::FailedPrecondition => {
                    self.lost(&status).await;
                }
                Err(status) => tracing::debug!("HoldDevice: {}", retry::describe(&status)),
            }
            tokio::time::sleep(RETURN_INTERVAL).await;
        }
    }
}

/// What a trainer calls itself to others.
pub fn holder_name(out: &std::path::Path) -> String {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    format!("student-trainer {} ({name})", std::process::id())
}
