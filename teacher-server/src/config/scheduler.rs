//! Provides which of several alike processes this one is, as what started them says in its variables.

/// What a scheduler says.
struct Scheduler {
    /// This process's number.
    rank: &'static str,
    /// How many there are.
    count: &'static str,
    /// Of numbers that do not begin at 0 or go on by 1: the first one, the last, and how far they are apart.
    from_to_by: Option<[&'static str; 3]>,
}

/// Those that are known: an array of Slurm's, an indexed Job of Kubernetes, whose count its manifest has to say, SkyPilot, Open MPI,
/// torchrun, and srun.
const KNOWN: [Scheduler; 6] = [
    Scheduler {
        from_to_by: Some([
            "SLURM_ARRAY_TASK_MIN",
            "SLURM_ARRAY_TASK_MAX",
            "SLURM_ARRAY_TASK_STEP",
        ]),
        ..plain("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
    },
    plain("JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"),
    plain("SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"),
    plain("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    plain("RANK", "WORLD_SIZE"),
    plain("SLURM_PROCID", "SLURM_NTASKS"),
];

/// A script of Slurm's is no step of srun's, and has this variable without the other.
const HALF_OF_A_STEP: &str = "SLURM_PROCID";

const fn plain(rank: &'static str, count: &'static str) -> Scheduler {
    Scheduler {
        rank,
        count,
        from_to_by: None,
    }
}

/// This process's number and how many there are, as the variables that `of` reads say it. A scheduler that started one process
/// has nothing to say beside one that started several.
///
/// # Errors
/// No scheduler's variables, a number that is missing or none, or two schedulers that say different things.
pub(super) fn rank(of: impl Fn(&str) -> Option<String>) -> Result<[u32; 2], String> {
    let number = |name: &str, text: &str| {
        let number = text.trim().parse::<u32>();
        number.map_err(|_| format!("the environment's {name} is `{text}`, which is no number"))
    };
    let optional = |name| of(name).map(|text| number(name, &text)).transpose();
    let mut found: Vec<(&Scheduler, [u32; 2])> = Vec::new();
    for scheduler in &KNOWN {
        let &Scheduler {
            rank: name,
            count,
            from_to_by,
        } = scheduler;
        let Some(text) = of(name) else {
            continue;
        };
        let Some(of_count) = optional(count)? else {
            if name == HALF_OF_A_STEP {
                continue;
            }
            return Err(format!(
                "the environment has {name}, but no {count}; set it to how many there are, or write I/N, e.g. 0/4"
            ));
        };
        let [from, to, by] = from_to_by.unwrap_or_default().map(&optional);
        let (from, by) = (from?.unwrap_or(0), by?.unwrap_or(1).max(1));
        let outside = || format!("the environment's {name} is {text}, which is none of {of_count}");
        // What is left of an array is no array: who does one task again would have it do everything.
        if of_count == 1 && from > 1 {
            return Err(format!(
                "{name} is {text}, of an array of one: to do a task of another array again, write which, e.g. --shard {text}/16"
            ));
        }
        let rank = number(name, &text)?.checked_sub(from).ok_or_else(outside)?;
        let span = to?.map(|to| to.saturating_sub(from));
        if rank % by != 0 || span.is_some_and(|span| span / by != of_count.saturating_sub(1)) {
            return Err(format!(
                "the {of_count} numbers of {name} are not equally far apart; write I/N, e.g. 0/4"
            ));
        }
        let rank = Some(rank / by).filter(|&rank| rank < of_count);
        let rank = rank.ok_or_else(outside)?;
        found.push((scheduler, [rank, of_count]));
    }
    found.sort_by_key(|(_, [_, count])| *count == 1);
    let Some(&(first, said)) = found.first() else {
        let names = KNOWN.map(|scheduler| scheduler.rank).join(", ");
        return Err(format!(
            "nothing says which of several processes this is (none of {names} is set); write I/N, e.g. 0/4"
        ));
    };
    match found
        .iter()
        .find(|(_, other)| other[1] > 1 && *other != said)
    {
        None => Ok(said),
        Some((other, [rank, count])) => Err(format!(
            "the environment's {} says {}/{} and {} says {rank}/{count}; write I/N, e.g. 0/4",
            first.rank, said[0], said[1], other.rank
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank_with(variables: &[(&str, &str)]) -> Result<[u32; 2], String> {
        rank(|name| {
            let mut set = variables.iter();
            set.find(|(one, _)| *one == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn each_scheduler_says_which_of_its_processes_this_is() {
        let array = [
            ("SLURM_ARRAY_TASK_ID", "7"),
            ("SLURM_ARRAY_TASK_COUNT", "4"),
            ("SLURM_ARRAY_TASK_MIN", "1"),
            ("SLURM_ARRAY_TASK_STEP", "2"),
            ("SLURM_ARRAY_TASK_MAX", "7"),
        ];
        assert_eq!(rank_with(&array), Ok([3, 4]));
        // A script of Slurm's has half of what a step of it has.
        let script = [&array[..], &[("SLURM_PROCID", "0")]].concat();
        assert_eq!(rank_with(&script), Ok([3, 4]));
        let step = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1")];
        assert_eq!(rank_with(&[&array[..], &step].concat()), Ok([3, 4]));
        assert_eq!(rank_with(&step), Ok([0, 1]));
        for [rank, count] in [
            ["JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"],
            ["SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"],
            ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"],
            ["RANK", "WORLD_SIZE"],
            ["SLURM_PROCID", "SLURM_NTASKS"],
        ] {
            assert_eq!(
                rank_with(&[(rank, "2"), (count, "3")]),
                Ok([2, 3]),
                "{rank}"
            );
        }
    }

    #[test]
    fn what_cannot_be_told_is_refused_with_what_to_write() {
        let two = [
            ("RANK", "0"),
            ("WORLD_SIZE", "2"),
            ("SLURM_PROCID", "1"),
            ("SLURM_NTASKS", "2"),
        ];
        for (variables, part) in [
            (&[][..], "none of SLURM_ARRAY_TASK_ID, JOB_COMPLETION_INDEX"),
            (&[("JOB_COMPLETION_INDEX", "0")], "no JOB_COMPLETIONS;"),
            (&[("RANK", "x"), ("WORLD_SIZE", "2")], "RANK is `x`"),
            (
                &[("RANK", "2"), ("WORLD_SIZE", "2")],
                "is 2, which is none of 2",
            ),
            (&[("RANK", "0"), ("WORLD_SIZE", "0")], "which is none of 0"),
            (&two, "RANK says 0/2 and SLURM_PROCID says 1/2"),
            (
                &[
                    ("SLURM_ARRAY_TASK_ID", "5"),
                    ("SLURM_ARRAY_TASK_COUNT", "1"),
                    ("SLURM_ARRAY_TASK_MIN", "5"),
                ],
                "--shard 5/16",
            ),
            (
                &[
                    ("RANK", "1"),
                    ("WORLD_SIZE", "4"),
                    ("JOB_COMPLETION_INDEX", "0"),
                ],
                "no JOB_COMPLETIONS;",
            ),
            (
                // --array=1,3,17
                &[
                    ("SLURM_ARRAY_TASK_ID", "3"),
                    ("SLURM_ARRAY_TASK_COUNT", "3"),
                    ("SLURM_ARRAY_TASK_MIN", "1"),
                    ("SLURM_ARRAY_TASK_MAX", "17"),
                    ("SLURM_ARRAY_TASK_STEP", "1"),
                ],
                "not equally far apart",
            ),
        ] {
            let error = rank_with(variables).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
