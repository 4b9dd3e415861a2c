//! Provides which of several ranks this process is, as the variables of what started it say.

use crate::{Error, Result};

/// What one kind of launcher says.
struct Launcher {
    rank: &'static str,
    count: &'static str,
    /// The rank among those on this machine.
    local_rank: &'static str,
    /// How many of them there are; nothing says so of Slurm's tasks, which have cores of their own.
    local_count: Option<&'static str>,
    /// Cores of each.
    cores: Option<&'static str>,
    /// There where each is kept to its own cores already.
    is_bound: Option<&'static str>,
}

/// Open MPI's mpirun; MPICH's, Intel's and Slurm's PMI-2; Slurm's PMIx. The first whose rank is there counts: mpirun in a job of Slurm's
/// has Slurm's variables too.
const KNOWN: [Launcher; 3] = [
    Launcher {
        rank: "OMPI_COMM_WORLD_RANK",
        count: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_count: Some("OMPI_COMM_WORLD_LOCAL_SIZE"),
        cores: None,
        is_bound: Some("OMPI_MCA_orte_bound_at_launch"),
    },
    Launcher {
        rank: "PMI_RANK",
        count: "PMI_SIZE",
        local_rank: "MPI_LOCALRANKID",
        local_count: Some("MPI_LOCALNRANKS"),
        cores: Some("SLURM_CPUS_PER_TASK"),
        is_bound: None,
    },
    Launcher {
        rank: "PMIX_RANK",
        count: "SLURM_NTASKS",
        local_rank: "SLURM_LOCALID",
        local_count: None,
        cores: Some("SLURM_CPUS_PER_TASK"),
        is_bound: None,
    },
];

/// Started by these alone, several processes know nothing of each other: torchrun, and srun without an MPI.
const APART: [[&str; 2]; 2] = [["RANK", "WORLD_SIZE"], ["SLURM_PROCID", "SLURM_NTASKS"]];

/// Which of several ranks a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Its number, from 0.
    pub rank: usize,
    /// How many there are.
    pub count: usize,
    /// Its number among those on this machine.
    pub local_rank: usize,
    /// What the threads of one rank may take of the machine's cores.
    pub cores: Cores,
    /// The variable that says how many there are.
    pub said_by: &'static str,
}

/// The cores of one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cores {
    /// Those that the system gives the process.
    Own,
    /// As many.
    Count(usize),
    /// Those that the system gives the process, divided among as many.
    Among(usize),
}

impl Launch {
    /// What the environment says; none where nothing has started several.
    ///
    /// # Errors
    /// Half of it, or what is no number.
    pub fn of_this_process() -> Result<Option<Self>> {
        Self::from(|name| Some(std::env::var_os(name)?.to_string_lossy().into_owned()))
    }

    fn from(of: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let number = |name: &str| -> Result<Option<usize>> {
            let Some(text) = of(name) else {
                return Ok(None);
            };
            let number = text.trim().parse();
            let number = number.map_err(|_| {
                Error::Config(format!(
                    "the environment's {name} is `{text}`, which is no number; start the ranks with mpirun or srun, or \
                     unset it"
                ))
            })?;
            Ok(Some(number))
        };
        for launcher in &KNOWN {
            let Some(rank) = number(launcher.rank)? else {
                continue;
            };
            let Some(count) = number(launcher.count)? else {
                // PMIx beside another launcher than Slurm's srun.
                continue;
            };
            if rank >= count {
                return Err(Error::Config(format!(
                    "the environment's {} is {rank} and its {} is {count}; start the ranks with mpirun or srun, or unset both",
                    launcher.rank, launcher.count
                )));
            }
            let optional = |name: Option<&str>| name.map_or(Ok(None), &number);
            let cores = match (optional(launcher.cores)?, launcher.is_bound.and_then(&of)) {
                (Some(cores), _) => Cores::Count(cores),
                (None, Some(_)) => Cores::Own,
                (None, None) => match (launcher.local_count, launcher.cores) {
                    (Some(name), _) if of(name).is_some() => {
                        Cores::Among(number(name)?.unwrap_or(1))
                    }
                    // Slurm gives a task one where nobody asks for more.
                    (_, Some(_)) => Cores::Count(1),
                    _ => Cores::Own,
                },
            };
            return Ok(Some(Self {
                rank,
                count,
                local_rank: number(launcher.local_rank)?.unwrap_or(0),
                cores,
                said_by: launcher.count,
            }));
        }
        Ok(None)
    }

    /// Where something started several processes that know nothing of each other: its variable, and how many.
    pub fn apart() -> Option<(&'static str, usize)> {
        let of = |name: &str| std::env::var(name).ok()?.trim().parse::<usize>().ok();
        APART.into_iter().find_map(|[rank, count]| {
            of(rank)?;
            Some((count, of(count).filter(|&count| count > 1)?))
        })
    }
}

impl Cores {
    /// How many threads compute where the system gives the process `available` cores.
    pub fn threads(self, available: usize) -> usize {
        let threads = match self {
            Self::Own => available,
            Self::Count(count) => count.min(available),
            Self::Among(processes) => available / processes.max(1),
        };
        threads.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
        Launch::from(|name| {
            let mut set = variables.iter();
            set.find(|(one, _)| *one == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn each_launcher_says_which_rank_this_is_and_which_cores_it_has() {
        let mpirun = [
            ("OMPI_COMM_WORLD_RANK", "5"),
            ("OMPI_COMM_WORLD_SIZE", "8"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "4"),
            // Of the job that it runs in.
            ("PMIX_RANK", "5"),
            ("SLURM_NTASKS", "2"),
        ];
        let found = launch(&mpirun).unwrap().unwrap();
        assert_eq!((found.rank, found.count, found.local_rank), (5, 8, 1));
        assert_eq!(
            (found.cores, found.cores.threads(64)),
            (Cores::Among(4), 16)
        );
        let bound = [&mpirun[..], &[("OMPI_MCA_orte_bound_at_launch", "1")]].concat();
        let found = launch(&bound).unwrap().unwrap();
        assert_eq!(found.cores.threads(8), 8);

        let srun = [
            ("PMIX_RANK", "1"),
            ("SLURM_NTASKS", "2"),
            ("SLURM_LOCALID", "0"),
        ];
        let found = launch(&srun).unwrap().unwrap();
        assert_eq!((found.rank, found.count, found.local_rank), (1, 2, 0));
        assert_eq!(found.cores.threads(64), 1);
        let more = [&srun[..], &[("SLURM_CPUS_PER_TASK", "12")]].concat();
        let found = launch(&more).unwrap().unwrap();
        assert_eq!((found.cores.threads(64), found.cores.threads(8)), (12, 8));

        let mpich = [
            ("PMI_RANK", "0"),
            ("PMI_SIZE", "3"),
            ("MPI_LOCALNRANKS", "3"),
        ];
        let found = launch(&mpich).unwrap().unwrap();
        assert_eq!((found.count, found.cores.threads(2)), (3, 1));
    }

    #[test]
    fn a_job_that_starts_one_process_starts_no_ranks() {
        for variables in [
            &[][..],
            &[("SLURM_NTASKS", "4"), ("SLURM_PROCID", "0")],
            &[("PMIX_RANK", "0")],
        ] {
            assert_eq!(launch(variables).unwrap(), None);
        }
    }

    #[test]
    fn variables_that_make_no_sense_are_refused_by_name() {
        for (rank, count, part) in [
            ("x", "2", "OMPI_COMM_WORLD_RANK is `x`"),
            ("0", "-1", "OMPI_COMM_WORLD_SIZE is `-1`"),
            ("2", "2", "OMPI_COMM_WORLD_RANK is 2"),
        ] {
            let variables = [
                ("OMPI_COMM_WORLD_RANK", rank),
                ("OMPI_COMM_WORLD_SIZE", count),
            ];
            let error = launch(&variables).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
