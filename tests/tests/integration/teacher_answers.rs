//! Asks the real teacher for answers, with the real trainer and as strangers would: what it says, what it refuses, who waits for whom.

use std::{
    io::{Read, Write},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use distill_model::testing::TinyModel;
use distill_proto::v1::{
    self, FinishReason, generate_request::Prompt, generate_response::Event, stream_blocks_response,
    teacher_service_client::TeacherServiceClient,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    generate::{Talk, change, endless_model, printed},
    harness::{
        Listen, Teacher, ending, send_signal, teacher_succeeds, text, trainer, trainer_refuses,
        wait_until,
    },
    pipeline::{Setup, path_text},
};

type Client = TeacherServiceClient<Channel>;

/// Longest wait for something that takes moments.
const PATIENCE: Duration = Duration::from_secs(120);

/// A teacher whose answers never end by themselves, and its server.
struct Asked {
    setup: Setup,
    model: TempDir,
    server: Teacher,
}

impl Asked {
    fn new() -> Result<Self> {
        let (setup, model) = (Setup::new()?, endless_model("qwen2-untied")?);
        let server = setup.serve_model(model.path(), &Listen::Loopback, &[]);
        Ok(Self {
            setup,
            model,
            server,
        })
    }

    /// The flags that name the same model here and by address.
    fn sides(&self) -> [Vec<&str>; 2] {
        let model = path_text(self.model.path());
        [
            vec!["--student", model, "--quantize", "none"],
            vec!["--teacher", self.server.address()],
        ]
    }
}

/// What `command` prints with the model here, where by address it prints the same.
fn same(asked: &Asked, command: &str, flags: &[&str]) -> Result<String> {
    let [here, there] = asked
        .sides()
        .map(|side| printed(&[&[command], &side[..], flags].concat()));
    let (here, there) = (here?, there?);
    assert_eq!(here, there, "{flags:?}");
    Ok(here)
}

#[test]
fn an_answer_by_address_is_that_of_the_same_model_here() -> Result<()> {
    let asked = Asked::new()?;
    let prompts = asked.setup.work.path().join("prompts.jsonl");
    let lines = [
        json!({"prompt": "once upon"}),
        json!({"messages": [
            {"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "and?"},
            {"role": "assistant", "content": "left out"},
        ]}),
        json!({"prompt": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why"}]}),
    ];
    std::fs::write(&prompts, lines.map(|line| line.to_string()).join("\n"))?;
    let all = [
        "--prompt",
        "one, two",
        "three",
        "--prompts",
        path_text(&prompts),
        "--max-new-tokens",
        "24",
    ];
    let greedy = same(&asked, "generate", &[&all[..], &["--json"]].concat())?;
    let drawn = [
        "--temperature",
        "0.9",
        "--top-k",
        "50",
        "--top-p",
        "0.95",
        "--min-p",
        "0.001",
        "--sample-seed",
        "7",
    ];
    let sampled = same(
        &asked,
        "generate",
        &[&all[..], &drawn, &["--json"]].concat(),
    )?;
    assert_ne!(greedy, sampled);
    assert_eq!(greedy.lines().count(), 5);
    same(&asked, "generate", &all)?;
    let chat = ["--chat", "--system", "be brief"];
    let chatted = same(&asked, "generate", &[&all[..], &chat, &["--json"]].concat())?;
    assert_ne!(greedy, chatted);
    // A stop string from the middle of an answer, one that is not in it, and one that is a special token.
    let first: Value = serde_json::from_str(greedy.lines().next().context("an answer")?)?;
    let whole: Vec<char> = first["text"].as_str().context("a text")?.chars().collect();
    let stop: String = whole[whole.len() / 2..whole.len() / 2 + 2].iter().collect();
    let stops = [
        "--stop",
        &stop,
        "nowhere to be found",
        "<|im_end|>",
        "--json",
    ];
    let stopped = same(&asked, "generate", &[&all[..], &stops].concat())?;
    let first: Value = serde_json::from_str(stopped.lines().next().context("an answer")?)?;
    assert_eq!(first["finish"], "stop");
    Ok(())
}

/// What is printed of a conversation.
fn talked(flags: &[&str], lines: &[u8]) -> Result<String> {
    let mut child = trainer(&[&["chat"], flags].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("its input")?.write_all(lines)?;
    let output = child.wait_with_output()?;
    anyhow::ensure!(output.status.success(), "{}", text(&output));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn a_conversation_by_address_is_that_with_the_same_model_here() -> Result<()> {
    let asked = Asked::new()?;
    let lines = b"hello\nand then?\n/reset\nhello\n";
    let more = ["--max-new-tokens", "12", "--system", "be brief"];
    let [here, there] = asked
        .sides()
        .map(|side| talked(&[&side[..], &more].concat(), lines));
    assert_eq!(here?, there?);
    // Beside the student each has a conversation of its own.
    let student = path_text(asked.setup.student.path());
    let beside = ["--student", student, "--compare", "--temperature", "0"];
    let [_, there] = asked.sides();
    let both = talked(&[&beside[..], &there, &more].concat(), lines)?;
    let alone = talked(
        &[&there[..], &more, &["--temperature", "0"]].concat(),
        lines,
    )?;
    let blocks: Vec<&str> = both.split("[teacher]\n").skip(1).collect();
    let blocks = blocks
        .iter()
        .map(|block| block.split("[student]\n").next().unwrap_or_default());
    let blocks: Vec<&str> = blocks.map(str::trim_end).collect();
    assert_eq!(blocks.len(), 3, "{both}");
    // The same words, whatever the ends of lines were.
    let words = |text: &str| -> Vec<String> { text.split_whitespace().map(Into::into).collect() };
    assert_eq!(words(&blocks.join("\n")), words(&alone));
    Ok(())
}

#[test]
fn compare_sets_the_teacher_beside_base_and_adapter() -> Result<()> {
    let asked = Asked::new()?;
    let run = asked
        .setup
        .train(&asked.server, "run", &["--steps", "2", "--lr", "1e-2"]);
    let adapter = run.join("adapter");
    let (student, adapter) = (path_text(asked.setup.student.path()), path_text(&adapter));
    let prompts = ["--prompt", "one, two", "three", "--max-new-tokens", "8"];
    let objects = |flags: &[&str]| -> Result<Vec<Value>> {
        let text = printed(&[&["generate"], &prompts[..], &["--json"], flags].concat())?;
        text.lines()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    };
    let [_, there] = asked.sides();
    let teacher = objects(&there)?;
    let base = objects(&["--student", student])?;
    let adapted = objects(&["--student", student, "--adapter", adapter])?;
    let beside = [&there[..], &["--student", student, "--compare"]].concat();
    let two = objects(&beside)?;
    let three = objects(&[&beside[..], &["--adapter", adapter]].concat())?;
    for number in 0..2 {
        let is = |object: &Value, name: &str, alone: &[Value]| {
            assert_eq!(object[name]["text"], alone[number]["text"], "{name}");
        };
        is(&two[number], "student", &base);
        is(&two[number], "teacher", &teacher);
        is(&three[number], "base", &base);
        is(&three[number], "adapter", &adapted);
        is(&three[number], "teacher", &teacher);
    }
    let blocks = printed(&[&["generate"], &prompts[..], &beside].concat())?;
    assert!(
        blocks.contains("[student]\n") && blocks.contains("[teacher]\n"),
        "{blocks}"
    );
    for (flags, part) in [
        (["--student", student].as_slice(), "--compare"),
        (&["--compare"], "--student DIR"),
    ] {
        let said = trainer_refuses(&[&["generate"], &prompts[..], &there, flags].concat());
        assert!(said.contains(part), "{flags:?}: {said}");
        let said = trainer_refuses(&[&["chat"], &there[..], flags].concat());
        assert!(said.contains(part), "{flags:?}: {said}");
    }
    Ok(())
}

#[test]
fn a_server_that_cannot_answer_says_why_and_what_to_do() -> Result<()> {
    let asked = Asked::new()?;
    let ask = |server: &Teacher, flags: &[&str]| {
        let base = [
            "generate",
            "--prompt",
            "hello",
            "--teacher",
            server.address(),
        ];
        trainer_refuses(&[&base, flags].concat())
    };
    let work = asked.setup.work.path();
    let (model, corpus) = (
        path_text(asked.model.path()),
        path_text(&asked.setup.corpus),
    );
    let cache = work.join("cache");
    let capture = ["--model", model, "--corpus", corpus, "--seq-len", "48"];
    teacher_succeeds(&[&["precompute"], &capture[..], &["--out", path_text(&cache)]].concat());
    let own = tempfile::tempdir()?;
    for flags in [
        &["--cache", path_text(&cache)][..],
        // Complete, so that nothing is loaded.
        &[&["--cache", path_text(&cache)], &capture[..]].concat(),
    ] {
        let cached = Teacher::serve(own.path(), &Listen::Loopback, flags);
        let said = ask(&cached, &[]);
        assert!(
            said.contains("no model in memory") && said.contains("without --cache"),
            "{said}"
        );
    }
    // One that is filled has its model.
    let new = work.join("new");
    let filled = [&["--cache", path_text(&new)], &capture[..]].concat();
    let filled = Teacher::serve(own.path(), &Listen::Loopback, &filled);
    let base = ["generate", "--prompt", "hello", "--max-new-tokens", "4"];
    let there = printed(&[&base[..], &["--teacher", filled.address()]].concat())?;
    let here = ["--student", model, "--quantize", "none"];
    assert_eq!(there, printed(&[&base[..], &here].concat())?);

    let swap = [&capture[..], &["--vram-mode", "swap"]].concat();
    let swapping = Teacher::serve(own.path(), &Listen::Loopback, &swap);
    let said = ask(&swapping, &[]);
    assert!(said.contains("--vram-mode resident"), "{said}");
    assert!(said.contains("FailedPrecondition"), "{said}");

    let experts = tempfile::tempdir()?;
    let shape = TinyModel {
        vocab_size: 384,
        ..TinyModel::qwen3_moe()
    };
    distill_model::testing::write_tiny_model(experts.path(), &shape, 3)?;
    for entry in std::fs::read_dir(distill_tests::fixtures::path("tokenizer"))? {
        let entry = entry?;
        std::fs::copy(entry.path(), experts.path().join(entry.file_name()))?;
    }
    let outside = Teacher::serve(
        own.path(),
        &Listen::Loopback,
        &[
            "--model",
            path_text(experts.path()),
            "--corpus",
            corpus,
            "--seq-len",
            "48",
        ],
    );
    let said = ask(&outside, &[]);
    assert!(
        said.contains("qwen3_moe") && said.contains("another family"),
        "{said}"
    );

    let silent = endless_model("qwen2-untied")?;
    change(&silent.path().join("tokenizer_config.json"), |config| {
        config["chat_template"] = Value::Null;
    })?;
    let silent = Teacher::serve(
        own.path(),
        &Listen::Loopback,
        &[
            "--model",
            path_text(silent.path()),
            "--corpus",
            corpus,
            "--seq-len",
            "48",
        ],
    );
    let said = ask(&silent, &["--chat"]);
    assert!(
        said.contains("no chat template") && !said.contains(path_text(work)),
        "{said}"
    );

    // What is wrong with the question.
    for (flags, part) in [
        (&["--max-new-tokens", "16385"][..], "max_new_tokens: 16385"),
        (&["--stop", &"x".repeat(1025)], "stop[0]"),
        (&["--temperature", "nan"], "temperature"),
    ] {
        let said = ask(&asked.server, flags);
        assert!(said.contains(part), "{flags:?}: {said}");
    }
    let said = trainer_refuses(&[
        "generate",
        "--prompt",
        "",
        "--teacher",
        "http://127.0.0.1:1",
    ]);
    assert!(said.contains("prompt 1: the prompt is empty"), "{said}");
    Ok(())
}

/// A connection of its own.
fn connect(server: &Teacher) -> Result<Client> {
    let endpoint = Endpoint::from_shared(server.address().to_owned())?;
    Ok(TeacherServiceClient::new(endpoint.connect_lazy()))
}

async fn client_of(server: &Teacher) -> Result<(Client, v1::GetServerInfoResponse)> {
    let mut client = connect(server)?;
    loop {
        match client.get_server_info(v1::GetServerInfoRequest {}).await {
            Ok(info) => return Ok((client, info.into_inner())),
            Err(status) => anyhow::ensure!(status.code() == Code::Unavailable, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn question(text: &str, max_new_tokens: u32) -> v1::GenerateRequest {
    v1::GenerateRequest {
        prompt: Some(Prompt::Text(text.to_owned())),
        max_new_tokens,
        temperature: 0.8,
        seed: 3,
        ..Default::default()
    }
}

/// The rest of an answer, with what came of it before.
async fn rest(
    mut text: String,
    mut answer: Streaming<v1::GenerateResponse>,
) -> Result<(String, v1::Finished), Status> {
    loop {
        let message = tokio::time::timeout(PATIENCE, answer.message()).await;
        let message = message.map_err(|_| Status::aborted("no answer"))??;
        match message.and_then(|message| message.event) {
            Some(Event::Text(more)) => text += &more,
            Some(Event::Heartbeat(_)) => {}
            Some(Event::Finished(finished)) => return Ok((text, finished)),
            None => return Err(Status::aborted("no end")),
        }
    }
}

async fn ask(
    client: &mut Client,
    question: v1::GenerateRequest,
) -> Result<(String, v1::Finished), Status> {
    let answer = client.generate(question).await?.into_inner();
    rest(String::new(), answer).await
}

/// A long answer that has begun.
async fn begun(
    client: &mut Client,
    tokens: u32,
) -> Result<(String, Streaming<v1::GenerateResponse>)> {
    let mut answer = client
        .generate(question("long", tokens))
        .await?
        .into_inner();
    loop {
        let message = tokio::time::timeout(PATIENCE, answer.message()).await??;
        if let Some(Event::Text(text)) = message.context("an answer")?.event {
            return Ok((text, answer));
        }
    }
}

/// All frames of the plan, and its end.
async fn frames(client: &mut Client, plan: &str) -> Result<(Vec<v1::Block>, v1::End)> {
    let request = v1::StreamBlocksRequest {
        plan_fingerprint: plan.to_owned(),
        ..Default::default()
    };
    let mut stream = client.stream_blocks(request).await?.into_inner();
    let mut frames = Vec::new();
    loop {
        let message = tokio::time::timeout(PATIENCE, stream.message()).await??;
        match message.context("no end")?.event {
            Some(stream_blocks_response::Event::Block(block)) => frames.push(block),
            Some(stream_blocks_response::Event::End(end)) => return Ok((frames, end)),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_and_a_capture_side_by_side_are_what_each_is_alone() -> Result<()> {
    const TOKENS: u32 = 2500;
    let asked = Asked::new()?;
    let (mut client, info) = client_of(&asked.server).await?;
    let (text, answer) = begun(&mut client, TOKENS).await?;
    let mut other = client.clone();
    let plan = info.plan_fingerprint.clone();
    let (answer, captured) = tokio::join!(rest(text, answer), frames(&mut other, &plan));
    let (text, finished) = answer?;
    assert_eq!(
        (finished.reason(), finished.tokens),
        (FinishReason::Length, TOKENS)
    );
    // Frames were sent, and nothing is computed any more.
    let again = ask(&mut client, question("long", TOKENS)).await?;
    assert_eq!(again, (text, finished));

    let alone = tempfile::tempdir()?;
    let flags = [
        "--model",
        path_text(asked.model.path()),
        "--corpus",
        path_text(&asked.setup.corpus),
        "--seq-len",
        "48",
    ];
    let alone = Teacher::serve(alone.path(), &Listen::Loopback, &flags);
    let (mut client, info) = client_of(&alone).await?;
    assert_eq!(
        frames(&mut client, &info.plan_fingerprint).await?,
        captured?
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_ask_at_once_get_what_each_gets_alone_and_one_who_leaves_keeps_nobody() -> Result<()>
{
    let asked = Asked::new()?;
    let (mut client, _) = client_of(&asked.server).await?;
    let questions = ["one", "two", "three", "four"].map(|text| question(text, 40));
    let mut alone = Vec::new();
    for question in &questions {
        alone.push(ask(&mut client, question.clone()).await?);
    }
    let mut together = Vec::new();
    for question in questions {
        let mut client = connect(&asked.server)?;
        together.push(tokio::spawn(
            async move { ask(&mut client, question).await },
        ));
    }
    for (task, alone) in together.into_iter().zip(&alone) {
        assert_eq!(&task.await??, alone);
    }
    // As many as the rest of the test could not wait for.
    let mut client = connect(&asked.server)?;
    let mut left = vec![begun(&mut client, 16_384).await?.1];
    for _ in 0..3 {
        left.push(
            client
                .generate(question("more", 16_384))
                .await?
                .into_inner(),
        );
    }
    let busy = client.generate(question("x", 1)).await.err();
    let busy = busy.context("a fifth one of this connection")?;
    assert_eq!(busy.code(), Code::ResourceExhausted, "{busy}");
    drop(left);
    // Others do not wait for those who have left.
    let mut other = connect(&asked.server)?;
    assert_eq!(ask(&mut other, question("one", 40)).await?, alone[0]);
    // The connection's share comes back a moment after its streams.
    loop {
        match ask(&mut client, question("one", 40)).await {
            Ok(answer) => {
                assert_eq!(answer, alone[0]);
                return Ok(());
            }
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_questions_are_refused_and_the_next_one_is_answered() -> Result<()> {
    let asked = Asked::new()?;
    let (mut client, _) = client_of(&asked.server).await?;
    let fine = question("one", 8);
    let expected = ask(&mut client, fine.clone()).await?;
    let with = |change: fn(&mut v1::GenerateRequest)| {
        let mut question = fine.clone();
        change(&mut question);
        question
    };
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let wrong = [
        with(|q| q.prompt = None),
        question("", 8),
        question(&"a b ".repeat(60_000), 8),
        question(&"a".repeat(1 << 20), 8),
        with(|q| q.max_new_tokens = u32::MAX),
        with(|q| q.max_new_tokens = 0),
        with(|q| q.temperature = f64::NAN),
        with(|q| q.temperature = f64::NEG_INFINITY),
        with(|q| q.top_p = Some(-0.0)),
        with(|q| q.min_p = f64::INFINITY),
        with(|q| q.stop = vec![String::new(); 100_000]),
        v1::GenerateRequest {
            prompt: Some(Prompt::MessagesJson(deep)),
            ..fine.clone()
        },
        with(|q| q.prompt = Some(Prompt::MessagesJson("{}".into()))),
        with(|q| q.prompt = Some(Prompt::MessagesJson("[]".into()))),
        with(|q| q.prompt = Some(Prompt::MessagesJson("[{\"role\": 1}]".into()))),
        with(|q| q.prompt = Some(Prompt::MessagesJson("[{\"role\": \"user\"}, 5]".into()))),
    ];
    for (number, wrong) in wrong.into_iter().enumerate() {
        let status = ask(&mut client, wrong).await.err();
        let status = status.with_context(|| format!("question {number} was answered"))?;
        assert_eq!(status.code(), Code::InvalidArgument, "{number}: {status}");
        assert_eq!(ask(&mut client, fine.clone()).await?, expected);
    }
    // Larger than any request.
    let huge = question(&"a".repeat(3 << 20), 8);
    assert!(ask(&mut client, huge).await.is_err());
    assert_eq!(ask(&mut client, fine).await?, expected);
    assert!(!asked.server.log().contains("panicked"));
    Ok(())
}

#[test]
fn ctrl_c_ends_an_answer_by_address_and_the_server_is_free_again() -> Result<()> {
    let asked = Asked::new()?;
    let [_, there] = asked.sides();
    let long = [&there[..], &["--max-new-tokens", "16384"]].concat();
    let mut answering = Talk::with("generate", &[&long[..], &["--prompt", "one"]].concat())?;
    wait_until("an answer", || answering.shown() > 3);
    interrupt(&mut answering.child)?;
    let mut talk = Talk::with("chat", &long)?;
    for turn in 1..=2 {
        let before = talk.shown();
        talk.say(b"hello\n")?;
        wait_until("an answer", || talk.shown() > before + 3);
        send_signal(&talk.child, libc::SIGINT);
        wait_until("its end", || talk.lines() >= turn);
    }
    drop(talk.child.stdin.take());
    assert_eq!(ending(&mut talk.child)?.code(), Some(0));
    // Nobody computes for those who have left.
    same(
        &asked,
        "generate",
        &["--prompt", "one", "--max-new-tokens", "4"],
    )?;
    Ok(())
}

fn interrupt(child: &mut Child) -> Result<()> {
    send_signal(child, libc::SIGINT);
    assert_eq!(ending(child)?.code(), Some(128 + libc::SIGINT));
    Ok(())
}

#[test]
fn a_server_that_stops_ends_an_answer_with_the_reason() -> Result<()> {
    let mut asked = Asked::new()?;
    let flags = [
        "generate",
        "--prompt",
        "one",
        "--max-new-tokens",
        "16384",
        "--teacher",
        asked.server.address(),
    ];
    let mut child = trainer(&flags)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // It has begun.
    let out = child.stdout.as_mut().context("its output")?;
    out.read_exact(&mut [0; 4])?;
    asked.server.signal(libc::SIGTERM);
    let output = child.wait_with_output()?;
    assert!(!output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("shutting down"), "{}", text(&output));
    Ok(())
}
