//! The link between supervisor and worker: framed messages over a Unix socket, or a channel in tests.
//!
//! A frame is a `u32` little-endian length and that many bytes of MessagePack. Both ends of a link are a pair
//! of channels; [`pump`] connects them to a socket on the supervisor's side and [`pump_blocking`] on the
//! worker's, so nothing above this file knows whether a process boundary lies between.
//!
//! The end of the stream is the end of the worker, in either direction. Nothing here waits for an answer.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream as StdUnixStream;

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use super::protocol::{FromWorker, ToWorker};

/// Largest frame either side accepts, in bytes. A prompt of pictures is the largest thing sent.
pub const MAX_FRAME_BYTES: usize = 1 << 30;

/// Why a link broke.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The socket failed.
    #[error("the worker link failed")]
    Io(#[from] io::Error),
    /// A frame is no message.
    #[error("the worker link carried something that is no message")]
    Decode(#[from] rmp_serde::decode::Error),
    /// A message cannot be framed.
    #[error("a message could not be written to the worker link")]
    Encode(#[from] rmp_serde::encode::Error),
    /// A frame announces more than [`MAX_FRAME_BYTES`].
    #[error("a frame of {0} bytes is more than the worker link carries")]
    TooLarge(usize),
}

/// The supervisor's end of a link.
#[derive(Debug)]
pub struct SupervisorEnd {
    /// To the worker. A send fails when the link is gone.
    pub to_worker: UnboundedSender<ToWorker>,
    /// From the worker. `None` when the link is gone.
    pub from_worker: UnboundedReceiver<FromWorker>,
}

/// The worker's end of a link.
#[derive(Debug)]
pub struct WorkerEnd {
    /// To the supervisor.
    pub to_supervisor: UnboundedSender<FromWorker>,
    /// From the supervisor. `None` when the link is gone.
    pub from_supervisor: UnboundedReceiver<ToWorker>,
}

/// A link without a socket.
pub fn in_process() -> (SupervisorEnd, WorkerEnd) {
    let (to_worker, from_supervisor) = unbounded_channel();
    let (to_supervisor, from_worker) = unbounded_channel();
    (SupervisorEnd { to_worker, from_worker }, WorkerEnd { to_supervisor, from_supervisor })
}

/// One message as a frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, LinkError> {
    let mut frame = vec![0u8; 4];
    rmp_serde::encode::write_named(&mut frame, message)?;
    let length = frame.len() - 4;
    if length > MAX_FRAME_BYTES {
        return Err(LinkError::TooLarge(length));
    }
    frame[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

/// The length a frame's head announces.
fn frame_length(head: [u8; 4]) -> Result<usize, LinkError> {
    let length = u32::from_le_bytes(head) as usize;
    if length > MAX_FRAME_BYTES { Err(LinkError::TooLarge(length)) } else { Ok(length) }
}

/// Reads one message; `None` at the end of the stream.
pub fn read_blocking<T: DeserializeOwned>(stream: &mut impl Read) -> Result<Option<T>, LinkError> {
    let mut head = [0u8; 4];
    match stream.read_exact(&mut head) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let mut body = vec![0u8; frame_length(head)?];
    stream.read_exact(&mut body)?;
    Ok(Some(rmp_serde::from_slice(&body)?))
}

/// Writes one message.
pub fn write_blocking<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), LinkError> {
    stream.write_all(&encode(message)?)?;
    Ok(())
}

async fn read<T: DeserializeOwned>(stream: &mut (impl AsyncReadExt + Unpin)) -> Result<Option<T>, LinkError> {
    let mut head = [0u8; 4];
    match stream.read_exact(&mut head).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let mut body = vec![0u8; frame_length(head)?];
    stream.read_exact(&mut body).await?;
    Ok(Some(rmp_serde::from_slice(&body)?))
}

/// The supervisor's end over a socket. Both directions stop when either does; the task then drops the socket,
/// which is what tells the worker to exit.
pub fn pump(socket: UnixStream) -> (SupervisorEnd, JoinHandle<()>) {
    let (to_worker, mut outgoing) = unbounded_channel::<ToWorker>();
    let (incoming, from_worker) = unbounded_channel::<FromWorker>();
    let task = tokio::spawn(async move {
        let (reader, mut writer) = socket.into_split();
        let mut reader = tokio::io::BufReader::with_capacity(1 << 16, reader);
        let read_all = async {
            loop {
                match read::<FromWorker>(&mut reader).await {
                    Ok(Some(message)) => {
                        if incoming.send(message).is_err() {
                            break;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(%error, "worker link broke");
                        break;
                    }
                }
            }
        };
        let write_all = async {
            while let Some(message) = outgoing.recv().await {
                let frame = match encode(&message) {
                    Ok(frame) => frame,
                    Err(error) => {
                        tracing::error!(%error, "a message to a worker was dropped");
                        continue;
                    }
                };
                if writer.write_all(&frame).await.is_err() {
                    // The reader will see the end of the stream and say what came before it.
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            () = read_all => {}
            () = write_all => {}
        }
    });
    (SupervisorEnd { to_worker, from_worker }, task)
}

/// The worker's end over a socket, on two threads of its own. `on_end` runs once when the stream ends.
pub fn pump_blocking(socket: StdUnixStream, on_end: impl FnOnce() + Send + 'static) -> io::Result<WorkerEnd> {
    let (to_supervisor, mut outgoing) = unbounded_channel::<FromWorker>();
    let (incoming, from_supervisor) = unbounded_channel::<ToWorker>();
    let mut writer = socket.try_clone()?;
    let mut reader = io::BufReader::with_capacity(1 << 16, socket);
    std::thread::Builder::new().name("link-write".into()).spawn(move || {
        while let Some(message) = outgoing.blocking_recv() {
            if write_blocking(&mut writer, &message).is_err() {
                break; // the reader sees the end too, and ends the worker
            }
        }
    })?;
    std::thread::Builder::new().name("link-read".into()).spawn(move || {
        while let Ok(Some(message)) = read_blocking::<ToWorker>(&mut reader) {
            if incoming.send(message).is_err() {
                break;
            }
        }
        on_end();
    })?;
    Ok(WorkerEnd { to_supervisor, from_supervisor })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::message::{ImagePixels, Sampling, Submission};

    fn submission() -> Submission {
        Submission {
            prompt: vec![1, 2, 3],
            images: vec![ImagePixels { width: 1, height: 1, rgb: vec![1, 2, 3], sha256: [7; 32] }],
            sampling: Sampling::greedy(),
            max_tokens: 4,
            stop_tokens: vec![2],
            top_logprobs: Some(3),
            emitted: vec![9],
            boundaries: vec![2],
        }
    }

    #[test]
    fn a_message_survives_its_frame() {
        let sent = ToWorker::Submit { id: 7, submission: Box::new(submission()) };
        let mut wire = Vec::new();
        write_blocking(&mut wire, &sent).unwrap();
        write_blocking(&mut wire, &ToWorker::Cancel { id: 7 }).unwrap();
        let mut wire = wire.as_slice();
        assert_eq!(read_blocking::<ToWorker>(&mut wire).unwrap(), Some(sent));
        assert_eq!(read_blocking::<ToWorker>(&mut wire).unwrap(), Some(ToWorker::Cancel { id: 7 }));
        assert_eq!(read_blocking::<ToWorker>(&mut wire).unwrap(), None);
    }

    #[test]
    fn hostile_frames_are_errors_not_panics() {
        let head = u32::MAX.to_le_bytes();
        let mut huge = head.as_slice();
        assert!(matches!(read_blocking::<ToWorker>(&mut huge), Err(LinkError::TooLarge(_))));
        let mut cut: &[u8] = &[9, 0, 0, 0, 1];
        assert!(matches!(read_blocking::<ToWorker>(&mut cut), Err(LinkError::Io(_))));
        let mut noise: &[u8] = &[3, 0, 0, 0, 0xc1, 0xc1, 0xc1];
        assert!(matches!(read_blocking::<ToWorker>(&mut noise), Err(LinkError::Decode(_))));
    }

    #[tokio::test]
    async fn both_pumps_speak_to_each_other_and_notice_the_end() {
        let (supervisor, worker) = StdUnixStream::pair().unwrap();
        supervisor.set_nonblocking(true).unwrap();
        let (ended, on_end) = tokio::sync::oneshot::channel();
        let mut worker = pump_blocking(worker, move || {
            let _ = ended.send(());
        })
        .unwrap();
        let (mut end, task) = pump(UnixStream::from_std(supervisor).unwrap());

        end.to_worker.send(ToWorker::Cancel { id: 3 }).unwrap();
        assert_eq!(worker.from_supervisor.recv().await, Some(ToWorker::Cancel { id: 3 }));
        worker.to_supervisor.send(FromWorker::Hello { protocol: PROTOCOL_FOR_TEST, pid: 1 }).unwrap();
        assert!(matches!(end.from_worker.recv().await, Some(FromWorker::Hello { pid: 1, .. })));

        drop(end);
        on_end.await.unwrap();
        task.await.unwrap();
    }

    const PROTOCOL_FOR_TEST: u32 = super::super::protocol::PROTOCOL;
}
