/*! Provides the connections: how many there are, how long one may be silent, and how many bytes are kept for it.

```text
 listener ──> accept: cap, back-off ──> Socket: admission in time ──> TLS, HTTP/2 ──> Bodies: bytes kept ──> auth ──> services
                       └────────────────── Clients: who there is, and what is kept for them ──────────────────┘
```

A client is a connection. What holds, whatever clients do:
- A connection that has not brought a request with the right token after `ADMISSION_TIMEOUT` is closed, wherever it stopped: before
  TLS, within it, before HTTP/2's preface, or after it.
- There are never more than `CONNECTIONS_MAX` connections, and fewer where the system gives fewer descriptors. One more makes the
  oldest leave that was not admitted, else the one that has been idle for longest; it is refused where all are at work.
- A request that is not there whole after `REQUEST_TIMEOUT` is over, and a connection has `KEPT_BYTES_A_CONNECTION` of such.
- Answers are made when their stream has room for them. What has been made and not been taken is counted until the transport has
  let it go: a connection with `KEPT_BYTES_A_CONNECTION` gets no second message on any of its streams. Above `KEPT_BYTES_MAX` in
  all the connection that most is kept for is closed, which is not that of a trainer that takes its time; and who is closed comes
  back with its cursor.
*/

mod accept;
mod bodies;
mod clients;
mod socket;
#[cfg(test)]
mod tests;

pub use accept::accept;
pub use bodies::{Bodies, REQUEST_BYTES_MAX};
pub use clients::{
    ADMISSION_TIMEOUT, CONNECTIONS_MAX, Client, Clients, KEPT_BYTES_A_CONNECTION, KEPT_BYTES_MAX,
    Limits, REQUEST_TIMEOUT, Share, Ticket,
};
pub use socket::Socket;
