//! Tests of what is refused before the teacher sees it.

use distill_model::Weights;

use super::*;
use crate::testing::write_model;

fn answerer(device: &Device, dtype: DType, batch_tokens: usize) -> Arc<Answerer> {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path());
    let weights = Weights::open(dir.path()).unwrap();
    let files = (
        weights.model_config().unwrap(),
        dir.path().to_owned(),
        TokenizerFiles::open(dir.path()).unwrap(),
    );
    Arc::new(Answerer::new(files, (device, dtype), batch_tokens))
}

fn request(text: &str) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt::Text(text.to_owned())),
        max_new_tokens: 4,
        ..GenerateRequest::default()
    }
}

#[tokio::test]
async fn questions_that_cannot_be_asked_are_refused_by_their_field() {
    let answerer = answerer(&Device::Cpu, DType::F32, 1);
    let fine = request("hello");
    let (job, _pieces) = answerer.read(fine.clone()).await.unwrap();
    assert_eq!(job.asked.ids.len(), 5);
    assert!(!job.is_abandoned());
    let with = |change: fn(&mut GenerateRequest)| {
        let mut request = fine.clone();
        change(&mut request);
        request
    };
    for (wrong, field, part) in [
        (with(|r| r.prompt = None), "prompt", "there is none"),
        (request(""), "text", "empty"),
        (request(" \n"), "text", "empty"),
        (request(&"a".repeat(5000)), "text", "5000 tokens"),
        (
            request(&"a".repeat(PROMPT_BYTES_MAX + 1)),
            "text",
            "above the limit",
        ),
        (
            with(|r| r.max_new_tokens = 0),
            "max_new_tokens",
            "at least 1",
        ),
        (
            with(|r| r.max_new_tokens = u32::MAX),
            "max_new_tokens",
            "above the limit of 16384",
        ),
        (with(|r| r.temperature = f64::NAN), "temperature", "1e-30"),
        (with(|r| r.temperature = -1.0), "temperature", "1e-30"),
        (
            with(|r| r.temperature = f64::INFINITY),
            "temperature",
            "1e-30",
        ),
        (with(|r| r.top_p = Some(0.0)), "top_p", "above 0"),
        (with(|r| r.top_p = Some(f64::NAN)), "top_p", "above 0"),
        (with(|r| r.min_p = f64::NAN), "min_p", "from 0 to 1"),
        (
            with(|r| r.stop = vec!["x".into(); STOPS_MAX + 1]),
            "stop",
            "17 texts",
        ),
        (
            with(|r| r.stop = vec!["x".repeat(STOP_BYTES_MAX + 1)]),
            "stop[0]",
            "1024 bytes",
        ),
    ] {
        match answerer.read(wrong).await.map(|_| ()) {
            Err(Error::Request {
                field: found,
                reason,
            }) => {
                assert_eq!(found, field, "{reason}");
                assert!(reason.contains(part), "{field}: {reason}");
            }
            other => panic!("{field}: {other:?}"),
        }
    }
    let messages = with(|r| r.prompt = Some(Prompt::MessagesJson("[]".into())));
    let refused = answerer.read(messages).await.map(|_| ());
    assert!(matches!(refused, Err(Error::NoChatTemplate)), "{refused:?}");
}

#[test]
fn an_answer_takes_no_more_of_a_card_than_a_batch_of_the_capture() {
    let Answerer { model, .. } = Arc::into_inner(answerer(&Device::Cpu, DType::F32, 1)).unwrap();
    let (layers, width) = (model.num_hidden_layers, model.key_value_size());
    let (row, token) = (2 * layers as u64 * width as u64 * 2, layer_bytes(&model, 2));
    assert_eq!(
        token,
        20 * model.hidden_size as u64 + 6 * model.intermediate_size as u64
    );
    let card = |batch_tokens: u64| {
        let mut answerer = Arc::into_inner(answerer(&Device::Cpu, DType::BF16, 1)).unwrap();
        // There is no card here; what it was given is what counts.
        answerer.granted_bytes = Some(batch_tokens * token);
        answerer
    };
    let fits = |batch: u64, prompt: usize, new: usize| card(batch).check_card(prompt, new).is_ok();
    // Ten tokens of a batch: a prompt of four, and keys and values in the place of the other six.
    let new = (6 * token / row) as usize - 4;
    assert!(fits(10, 4, new));
    assert!(!fits(10, 4, new + 1));
    assert!(!fits(10, 11, 1));
    let error = card(10).check_card(11, 1).unwrap_err().to_string();
    assert!(error.contains("--batch-size"), "{error}");
}
