//! Groups of processes for dilated-attention, over MPI: MPICH, Open MPI, or what the compiler wrapper `mpicc` (or the one that the
//! variable `MPICC` names when this is built) stands for.
//!
//! [`run`] is what a program starts with; its function gets the [`Group`](dilated_attention::distributed::Group) of all processes.
//! `mpi_collectives` is such a program.
//!
//! **Messages between pairs**, and not MPI's collectives, carry an exchange. So a length beyond what MPI counts is cut between the two
//! that know it, where a collective would have to be called equally often everywhere; the ranks that are late have names; and a
//! sub-group needs no communicator, whose making could hang beyond any deadline.
//!
//! **After a deadline** messages are still on their way, and MPI takes nothing back: it may write to their buffers at any time later.
//! So these are never freed, and the process has to end. It does not end MPI in order, which would wait for the rank that is late, but
//! through `MPI_Abort`, which ends all.

mod raw;
mod run;
mod transport;

pub use run::{Settings, run};
pub use transport::MpiTransport;
