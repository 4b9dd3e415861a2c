use std::collections::BTreeSet;

use distill_program::settings::{Is, Kind};

use super::*;

#[test]
fn every_flag_of_every_command_is_well_formed() {
    command().debug_assert();
}

/// What a command says of these arguments, before it does anything.
fn idle<C: Settings>(args: &[&str]) -> Vec<String> {
    let command = with_flags::<C>(Command::new("x"));
    let matches = command.get_matches_from([&["x"][..], args].concat());
    resolve::<C>(&matches, &all_keys()).unwrap().idle
}

#[test]
fn a_setting_without_effect_says_what_is_missing() {
    for (args, expected) in [
        (
            "--similarity cosine",
            "loss.align.similarity has no effect: it needs --ot-weight above 0 or --ot-weight-end above 0, and --align-cost \
             softmax-similarity or --align-loss similarity",
        ),
        (
            "--kl-weight 0 --kl-temperature 2",
            "loss.kl_temperature has no effect: it needs --kl-weight above 0 or --kl-weight-end above 0 or \
             --reverse-kl-weight above 0",
        ),
        (
            "--tune full --lora-b-lr-ratio 16",
            "lora_b_lr_ratio has no effect: it needs --tune lora",
        ),
        (
            "--embedding-lr-ratio 2",
            "embedding_lr_ratio has no effect: it needs --tune full",
        ),
        (
            "--init-adapter a --lora-rank 8",
            "it needs no --init-adapter",
        ),
        (
            "--steps 5 --epochs 3",
            "epochs has no effect: it needs no --steps",
        ),
        (
            "--warmup-steps 5 --warmup-ratio 0.1",
            "it needs no --warmup-steps",
        ),
        (
            "--eval-top-p 0.5",
            "--eval-data, and --eval-exact-match on, and --eval-temperature",
        ),
        ("--ca-cert c", "it needs --teacher https://..."),
        (
            "--jsd-beta 0.3",
            "loss.jsd_beta has no effect: it needs --jsd-weight above 0",
        ),
        (
            "--ot-weight 1 --reduction sum",
            "it needs --align-block-size above 0",
        ),
        (
            "--ot-weight 1 --align-plan links --align-loss kl --epsilon 1",
            "it needs --align-plan sinkhorn",
        ),
        (
            "--ot-weight 1 --align-mass 0.5",
            "it needs --align-plan partial",
        ),
        (
            "--ot-weight 1 --align-through-plan",
            "it needs --align-loss kl",
        ),
        (
            "--ot-weight 1 --kappa 8 --cost softmax-similarity",
            "it needs --align-cost kl",
        ),
        (
            "--ot-weight 1 --align-projection-lr 1",
            "it needs --align-cost hidden",
        ),
        ("--save-dtype bf16", "it needs --tune full"),
        ("--strict", "strict has no effect: it needs --eval-data"),
        ("--chat-template-kwargs {\"a\":1}", "it needs --eval-data"),
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        let idle = idle::<TrainConfig>(&args);
        assert!(
            idle.len() == 1 && idle[0].contains(expected),
            "{args:?}: {idle:?}"
        );
    }
    for args in [
        "--ot-weight 1 --epsilon 0.2 --kappa 8",
        "--ot-weight 1 --align-cost hidden --align-layers 0:3 --epsilon 0.2 --max-iterations 9",
        "--ot-weight-end 1 --kl-temperature 2 --ot-warmup-steps 3",
        "--preset literal --temperature 2 --block-size 32",
        "--eval-data d --eval-exact-match --eval-temperature 1 --eval-top-p 0.5",
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        let idle = idle::<TrainConfig>(&args);
        assert!(idle.is_empty(), "{args:?}: {idle:?}");
    }
    assert_eq!(idle::<EvalConfig>(&["--top-p", "0.5"]).len(), 1);
    assert_eq!(
        idle::<QuantizeConfig>(&["--weights", "bf16", "--block-size", "32"]).len(),
        1
    );
    for args in [
        "--quant q8_0",
        "--format gguf --dtype f32",
        "--format gguf --max-shard-bytes 9",
        "--format gguf-lora --tokenizer t",
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        assert_eq!(idle::<ExportConfig>(&args).len(), 1, "{args:?}");
    }
    let args = ["--format", "gguf", "--quant", "q4_k_m", "--tokenizer", "t"];
    assert!(idle::<ExportConfig>(&args).is_empty());
    assert_eq!(idle::<PlanConfig>(&["--ram-mib", "9"]).len(), 1);
    // It shows every part, whatever its weight.
    assert!(
        idle::<LossesConfig>(&["--temperature", "2", "--cost", "softmax-similarity"]).is_empty()
    );
}

/// What a file and flags resolve to.
fn resolved<C: Settings>(file: &str, args: &[&str]) -> Result<C> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, file).unwrap();
    let command = with_flags::<C>(Command::new("x"));
    let config = ["x", "--config", path.to_str().unwrap()];
    let matches = command.get_matches_from([&config[..], args].concat());
    Ok(resolve::<C>(&matches, &all_keys())?.config)
}

#[test]
fn chat_template_kwargs_in_a_table_are_not_dropped() {
    let table =
        "[chat_template_kwargs]\nthink = true\n[chat_template_kwargs.of]\nx = [1, {y = 'z'}]";
    let text = r#"{"think":true,"of":{"x":[1,{"y":"z"}]}}"#.parse().unwrap();
    assert_eq!(
        resolved::<TrainConfig>(table, &[])
            .unwrap()
            .chat_template_kwargs,
        text
    );
    assert_eq!(
        resolved::<EvalConfig>(table, &[])
            .unwrap()
            .chat_template_kwargs,
        text
    );
    assert_eq!(
        resolved::<PretrainConfig>(table, &[])
            .unwrap()
            .chat_template_kwargs,
        text
    );
    // A flag replaces all of it.
    let flags = ["--chat-template-kwargs", r#"{"a": 1}"#];
    assert_eq!(
        resolved::<EvalConfig>(table, &flags)
            .unwrap()
            .chat_template_kwargs,
        r#"{"a": 1}"#.parse().unwrap()
    );
    // A table or a list where a setting has none is told.
    for wrong in [
        "student = {a = 'b'}",
        "[student]\na = 1",
        "lr = [1]",
        "[[chat_template_kwargs]]\na = 1",
    ] {
        assert!(resolved::<TrainConfig>(wrong, &[]).is_err(), "{wrong}");
    }
    // What JSON does not have.
    let error = resolved::<EvalConfig>("[chat_template_kwargs]\nx = nan", &[]);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("finite"), "{error}");
}

#[test]
fn the_default_epsilon_as_a_flag_wins_over_a_lambda_of_a_preset_or_a_file() {
    let epsilon = |file: &str, args: &str| {
        let args: Vec<&str> = args.split_whitespace().collect();
        let config = resolved::<TrainConfig>(file, &args)?;
        // What is printed is read back as itself.
        let printed = toml::to_string(&config).unwrap();
        assert_eq!(resolved::<TrainConfig>(&printed, &[])?, config);
        Ok::<_, Error>(config.loss.align.epsilon())
    };
    const LAMBDA: &str = "[loss.align]\nlambda = 5";
    const EPSILON: &str = "[loss.align]\nepsilon = 0.1";
    for (file, args, expected) in [
        (LAMBDA, "", 0.2),
        (LAMBDA, "--epsilon 0.1", 0.1),
        (LAMBDA, "--epsilon 0.3", 0.3),
        (LAMBDA, "--lambda 4", 0.25),
        (EPSILON, "--lambda 4", 0.25),
        (EPSILON, "--preset literal", 0.1),
        ("", "--preset literal", 10.0),
        ("", "--preset literal --epsilon 0.1", 0.1),
        ("preset = 'literal'\n[loss.align]\nlambda = 5", "", 0.2),
        ("preset = 'literal'", "--lambda 5", 0.2),
    ] {
        assert_eq!(epsilon(file, args).unwrap(), expected, "{file} {args}");
    }
    for (file, args) in [
        ("", "--epsilon 0.1 --lambda 5"),
        ("[loss.align]\nlambda = 5\nepsilon = 0.1", ""),
        ("[loss.align]\nlambda = 0", ""),
        ("[loss.align]\nlambda = 'x'", ""),
    ] {
        let error = epsilon(file, args).unwrap_err().to_string();
        assert!(error.contains("lambda"), "{error}");
    }
}

#[test]
fn a_setting_in_a_file_is_told_where_it_has_no_effect() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    let idle = |text: &str| {
        std::fs::write(&path, text).unwrap();
        idle::<TrainConfig>(&["--config", path.to_str().unwrap()])
    };
    assert!(idle("[loss.align]\nkappa = 5")[0].contains("loss.align.kappa has no effect"));
    // The default, and a whole number where the default has a fraction.
    assert!(idle("lora_b_lr_ratio = 1\ntune = \"full\"").is_empty());
    // Settings of eval, which has no section for them.
    let outside = idle("temperature = 2.0");
    assert!(
        outside[0].contains("this one's is loss.align.temperature"),
        "{outside:?}"
    );
    let outside = idle("kl_temperature = 2.0");
    assert!(
        outside[0].contains("this one's is loss.kl_temperature"),
        "{outside:?}"
    );
    assert!(idle("kl_temperature = 2.0\n[loss]\nkl_temperature = 2.0").is_empty());
}

#[test]
fn what_print_config_writes_has_no_idle_setting() {
    let text = toml::to_string(&TrainConfig::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, text).unwrap();
    let idle = idle::<TrainConfig>(&["--config", path.to_str().unwrap()]);
    assert!(idle.is_empty(), "{idle:?}");
}

/// Every need speaks of settings of the same command, with words that these have.
fn check_needs<C: Settings>() {
    let keys = C::keys();
    for key in &keys {
        for (path, is) in key.needs.iter().copied().flatten() {
            let other = keys.iter().find(|other| other.path == *path);
            let other = other.unwrap_or_else(|| panic!("{} needs {path}", key.path));
            let values = match is {
                Is::One(words) => words.to_vec(),
                Is::Not(word) => vec![*word],
                Is::Above0 if other.kind == Kind::Integer => vec!["1"],
                Is::Above0 => vec!["0.5"],
                Is::On => vec!["on"],
                Is::Set | Is::Unset | Is::Begins(_) | Is::NoAddress | Is::Command(_) => continue,
            };
            for value in values {
                idle::<C>(&[&format!("--{}", other.flag()), value]);
            }
        }
    }
}

#[test]
fn every_need_is_one_of_the_same_command() {
    check_needs::<TrainConfig>();
    check_needs::<EvalConfig>();
    check_needs::<GenerateConfig>();
    check_needs::<ChatConfig>();
    check_needs::<PretrainConfig>();
    check_needs::<QuantizeConfig>();
    check_needs::<ExportConfig>();
    check_needs::<PlanConfig>();
    check_needs::<LossesConfig>();
}

#[test]
fn keys_of_other_trainers_are_answered_with_ours() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    for (line, ours) in [
        ("learning_rate = 1e-4", "`learning_rate`; here use `lr`"),
        (
            "gradient_accumulation_steps = 2",
            "here use `grad_accumulation`",
        ),
        ("lora_r = 8", "here use `lora_rank`"),
        ("beta = 0.5", "here use `loss.jsd_beta`"),
        ("bf16 = true", "here use `dtype` with bf16"),
        ("max_length = 512", "`seq_len` of teacher-server"),
        (
            "[loss]\nkd_temperature = 2",
            "`loss.kd_temperature`; here use `loss.kl_temperature`",
        ),
        (
            "[loss]\nkl_divergence = 'jsd'",
            "`loss.kl_divergence`; it is now `loss.kl_weight` for forward",
        ),
        (
            "[loss.ot]\ncost = 'kl'",
            "`loss.ot.cost`; it is now `loss.align.cost`",
        ),
        (
            "[loss]\nhidden_lr = 1",
            "`loss.hidden_lr`; it is now `loss.align.projection_lr`",
        ),
        ("stesp = 7", "the nearest setting is `steps`"),
    ] {
        std::fs::write(&path, line).unwrap();
        let command = with_flags::<TrainConfig>(Command::new("x"));
        let matches = command.get_matches_from(["x", "--config", path.to_str().unwrap()]);
        let error = resolve::<TrainConfig>(&matches, &all_keys()).err().unwrap();
        assert!(error.to_string().contains(ours), "{line}: {error}");
    }
}

#[test]
fn the_issue_s_flags_are_there() {
    let args = "student-trainer losses --student a --teacher b --cost kl --similarity cosine --temperature 0.05 \
                --kappa 1 --epsilon 0.1 --align-loss entropic --block-size 64 --reduction mean \
                --position-prior 1 --top-k 64 --grad-out g --json";
    command()
        .try_get_matches_from(args.split_whitespace())
        .unwrap();
    let args = "student-trainer train --student s --out o --checkpointing off --lora-targets q_proj,v_proj \
                --max-grad-norm 1.0 --grad-accumulation 2 --chunk-rows 64 --preset literal --print-config";
    command()
        .try_get_matches_from(args.split_whitespace())
        .unwrap();
}

#[test]
fn every_command_that_reads_a_corpus_can_be_strict() {
    for name in ["train", "eval", "pretrain"] {
        let args = ["student-trainer", name, "--strict"];
        command().try_get_matches_from(args).unwrap();
    }
}

/// Lines that `-h` has at most, and how wide they are.
const BRIEF_LINES_MAX: usize = 12;
const BRIEF_COLUMNS_MAX: usize = 100;

/// Groups of flags: that of where settings come from, and five of settings.
const GROUPS_MAX: usize = 6;

/// The help of a command with these settings: groups, true defaults, and a short form that says where the rest is.
fn check_help<C: Settings + PartialEq + std::fmt::Debug>(name: &str) {
    let mut program = command();
    program.build();
    let command = program.find_subcommand_mut(name).unwrap();
    let mut groups = BTreeSet::new();
    for arg in command.get_arguments() {
        let group = arg.get_help_heading();
        assert!(group.is_some(), "{name}: {} is in no group", arg.get_id());
        groups.extend(group);
    }
    // `plan` has those of `train`, and its own.
    let most = GROUPS_MAX + usize::from(name == "plan");
    assert!(groups.len() <= most, "{name}: {groups:?}");
    let defaults = distill_program::settings::table(&C::default()).unwrap();
    for key in C::keys() {
        let arg = command
            .get_arguments()
            .find(|arg| *arg.get_id() == *key.path);
        let help = arg.unwrap().get_help().unwrap().to_string();
        let default = distill_program::settings::lookup(&defaults, &key.path);
        let has_default = default.is_some_and(|value| {
            value.as_array().is_none_or(|values| !values.is_empty())
                && value.as_table().is_none()
                && value.as_str() != Some("")
        });
        let Some((_, shown)) = help.split_once("[default: ") else {
            assert!(
                !has_default || name == "plan" && key.path == "teacher",
                "{name}: {help}"
            );
            continue;
        };
        // What it shows is the default, as the flag takes it.
        let (shown, _) = shown.split_once(']').unwrap();
        let config = resolved::<C>("", &[&format!("--{}", key.flag()), shown]).unwrap();
        assert_eq!(config, C::default(), "{name}: --{} {shown}", key.flag());
    }
    let all = command.render_long_help().to_string();
    let brief = command.render_help().to_string();
    let lines: Vec<&str> = brief.lines().collect();
    assert!(lines.len() <= BRIEF_LINES_MAX, "{name}: {brief}");
    for line in &lines {
        assert!(line.chars().count() <= BRIEF_COLUMNS_MAX, "{name}: {line}");
    }
    assert!(brief.contains("--help all"), "{name}: {brief}");
    // Every flag in the short form is one of the long one, which has no such list.
    for flag in brief
        .split_whitespace()
        .filter(|word| word.starts_with("--"))
    {
        assert!(all.contains(flag), "{name}: {flag}");
    }
    assert_eq!(all.matches("--config <").count(), 1, "{name}: {all}");
}

#[test]
fn every_flag_is_in_a_group_and_shows_its_default_and_the_short_help_is_short() {
    check_help::<TrainConfig>("train");
    check_help::<EvalConfig>("eval");
    check_help::<GenerateConfig>("generate");
    check_help::<ChatConfig>("chat");
    check_help::<PretrainConfig>("pretrain");
    check_help::<QuantizeConfig>("quantize");
    check_help::<ExportConfig>("export");
    check_help::<PlanConfig>("plan");
    check_help::<LossesConfig>("losses");
}

#[test]
fn a_choice_between_words_lists_all_of_them() {
    let mut program = command();
    program.build();
    let train = program.find_subcommand_mut("train").unwrap();
    let help = train.render_long_help().to_string();
    for words in [
        "[default: nf4] [possible values: nf4, none]",
        "[default: lora] [possible values: lora, full]",
        "[default: kl] [possible values: kl, hidden, softmax-similarity, squared-euclidean]",
        "[default: 1] [at least 1]",
        "[1 to 65536]",
    ] {
        let flat = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(words), "{words}: {flat}");
    }
}
