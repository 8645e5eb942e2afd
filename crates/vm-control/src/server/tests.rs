use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use unix_socket::Taken;

use super::listener::MAX_CONNECTIONS;
use super::*;
use crate::frame;
use crate::message::{Event, PROTOCOL_VERSION, Reply, Request};
use crate::{Client, ClientError, Refusal};

/// Ends what hangs, and measures nothing.
const HANG_TIMEOUT: Duration = Duration::from_secs(600);

struct Echo(mpsc::SyncSender<ConnectionId>);

impl Service for Echo {
    fn handle(&self, _: &Peer<'_>, request: Request) -> Answer {
        match request {
            Request::Hello { .. } => {
                Reply::Hello { version: PROTOCOL_VERSION, name: "web".into(), pid: 1 }.into()
            }
            Request::Resume => Reply::Done.into(),
            Request::Throttle(_) => panic!("a mistake of the service"),
            _ => Reply::Refused(Refusal::NotPaused).into(),
        }
    }

    fn closed(&self, connection: ConnectionId) {
        let _ = self.0.try_send(connection);
    }

    fn subscribe(&self) -> Receiver<Event> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let _ = sender.send(Event::Paused);
        receiver
    }
}

fn served() -> (tempfile::TempDir, Server, Receiver<ConnectionId>) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::bind(&dir.path().join("web.sock")).unwrap();
    let (sender, closed) = mpsc::sync_channel(128);
    server.serve(Arc::new(Echo(sender))).unwrap();
    (dir, server, closed)
}

#[test]
fn requests_are_answered_and_refusals_carry_their_reason() {
    let (_dir, server, _) = served();
    let client = Client::connect(server.path(), "test").unwrap();
    assert_eq!((client.name(), client.pid()), ("web", 1));
    client.resume().unwrap();
    assert!(matches!(client.pause(), Err(ClientError::Refused(Refusal::NotPaused))));
}

#[test]
fn a_client_that_goes_away_is_noticed() {
    let (_dir, server, closed) = served();
    drop(Client::connect(server.path(), "test").unwrap());
    closed.recv_timeout(HANG_TIMEOUT).unwrap();
}

#[test]
fn a_panic_of_the_service_is_the_end_of_that_connection_and_is_noticed() {
    let (_dir, server, closed) = served();
    let client = Client::connect(server.path(), "test").unwrap();
    assert!(matches!(client.throttle(1), Err(ClientError::Lost { .. })));
    closed.recv_timeout(HANG_TIMEOUT).unwrap();
    Client::connect(server.path(), "test").unwrap().resume().unwrap();
}

#[test]
fn garbage_and_a_stalled_frame_disturb_nobody_else() {
    let (_dir, server, closed) = served();
    let mut stalled = UnixStream::connect(server.path()).unwrap();
    stalled.write_all(&[200, 0, 0, 0, 1]).unwrap();
    let mut garbage = UnixStream::connect(server.path()).unwrap();
    garbage.write_all(&[0xff; 400]).unwrap();
    closed.recv_timeout(HANG_TIMEOUT).unwrap();
    Client::connect(server.path(), "test").unwrap().resume().unwrap();
}

#[test]
fn nothing_is_answered_before_hello() {
    let (_dir, server, _) = served();
    let stream = UnixStream::connect(server.path()).unwrap();
    frame::send(&stream, &Request::Resume, &[]).unwrap();
    let (reply, _) = frame::receive::<Reply>(&stream).unwrap();
    assert_eq!(reply, Reply::Refused(Refusal::NotGreeted));
}

#[test]
fn a_client_can_wait_for_the_end_of_its_vmrun_and_no_longer_than_it_likes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("web.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let vmrun = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        frame::receive::<Request>(&stream).unwrap();
        let hello = Reply::Hello { version: PROTOCOL_VERSION, name: "web".into(), pid: 1 };
        frame::send(&stream, &hello, &[]).unwrap();
        stream
    });
    let client = Client::connect(&path, "test").unwrap();
    let stream = vmrun.join().unwrap();
    assert!(!client.await_end(Duration::from_millis(20)), "it has not ended");
    drop(stream);
    assert!(client.await_end(HANG_TIMEOUT));
}

#[test]
fn too_many_connections_are_turned_away_with_a_reason() {
    let (_dir, server, _) = served();
    let clients: Vec<_> =
        (0..MAX_CONNECTIONS).map(|_| Client::connect(server.path(), "test").unwrap()).collect();
    let refused = Client::connect(server.path(), "test").unwrap_err();
    let full = Refusal::TooManyClients { most: MAX_CONNECTIONS as u32 };
    assert!(matches!(&refused, ClientError::Refused(why) if *why == full), "{refused}");
    drop(clients);
}

#[test]
fn a_subscriber_hears_events() {
    let (_dir, server, _) = served();
    let mut events = Client::connect(server.path(), "test").unwrap().subscribe().unwrap();
    assert_eq!(events.next(Some(HANG_TIMEOUT)), Some(Event::Paused));
    assert_eq!(events.next(Some(HANG_TIMEOUT)), None);
}

#[test]
fn a_living_socket_is_not_taken_and_a_dead_one_is() {
    let (dir, server, _) = served();
    assert!(matches!(Server::bind(server.path()), Err(ServerError::InUse(_))));
    let dead = dir.path().join("dead.sock");
    drop(UnixListener::bind(&dead).unwrap());
    let mode = {
        let again = Server::bind(&dead).unwrap();
        fs::metadata(again.path()).unwrap().permissions().mode()
    };
    assert_eq!(mode & 0o777, 0o600);
    assert!(!dead.exists(), "the socket is left over");
    let file = dir.path().join("notes");
    fs::write(&file, "precious").unwrap();
    let refused = Server::bind(&file).unwrap_err();
    assert!(matches!(refused, ServerError::Taken(Taken::NoSocket(_))), "{refused}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}
