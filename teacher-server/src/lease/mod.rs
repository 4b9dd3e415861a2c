/*! Provides the lease of the device: in swap mode the teacher and its trainers have it one after another.

```text
 HoldDevice, ReleaseDevice ──> Lease ──> machine: who is next ──> Granted, Yield to the trainers
 readers and scores: needed? ────┘  └──> task of the teacher's thread: await room (memory), load, work, free
```

What holds at any moment, whoever crashes or hangs:
- The teacher loads only where no trainer has the lease, and only once the device has room: a closed stream is not yet free
  memory.
- A holder whose stream ends without a release may be dead or may have lost its connection. The device then settles for a
  few seconds, in which that holder alone can come back with its epoch; the same after the start of a server, for whoever held
  it under the one before.
- A holder that was asked to yield and does not is never overruled while its connection lives, because its memory is still
  there. After the timeout those who wait for the teacher are told who it is. A connection is dead when HTTP/2 keepalive says
  so, and then the lease is over; memory that is still taken keeps the teacher waiting all the same.
- Who comes back with an epoch after which somebody else used the device is refused, frees what it has, and asks anew.
- Nobody speaks for another: a grant comes with a secret, and who names its epoch has to name that, too. The latest one is kept
  in a file of the server's user, so that a restarted server knows the holder of before from one who guesses.
*/

mod holders;
mod machine;
mod memory;
mod record;

pub use holders::{Grant, HOLDER_CHARS_MAX, HOLDERS_MAX, Lease, LeaseOptions, Messages, Report};
pub use machine::{Action, Device, Event, Machine, Task};
pub use memory::{FreeMemory, MemoryOf};
pub use record::{Record, SECRET_BYTES, Secret};
