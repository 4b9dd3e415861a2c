//! Templates that a stranger may have written to stop, fill or crash the program that reads them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use super::*;

/// Renders on a thread with the stack that threads have by default, and says how long it took.
fn refuse(source: &str) -> String {
    let started = Instant::now();
    let error = std::thread::scope(|scope| {
        let render = || {
            let template = ChatTemplate::compile(source, &BTreeMap::new())?;
            let input = RenderInput {
                messages: &json!([{"role": "user", "content": "x"}]),
                tools: &Value::Null,
                kwargs: &Map::new(),
                add_generation_prompt: false,
            };
            template.render(&input).map_err(|e| e.to_string())
        };
        scope.spawn(render).join().unwrap()
    });
    let shown: String = source.chars().take(120).collect();
    let took = started.elapsed();
    assert!(took < Duration::from_secs(20), "{shown}: {took:?}");
    match error {
        Ok(rendering) => panic!("{shown}: {} bytes", rendering.text.len()),
        Err(error) => {
            assert!(error.len() < 1000, "{shown}: {}", error.len());
            println!("{took:?} {shown}\n    {error}");
            error
        }
    }
}

fn refuse_all(sources: &[String], reasons: &[&str]) {
    for source in sources {
        let error = refuse(source);
        let shown: String = source.chars().take(120).collect();
        assert!(
            reasons.iter().any(|reason| error.contains(reason)),
            "{shown}: {error}"
        );
    }
}

#[test]
fn a_chain_of_operators_does_not_overflow_the_stack() {
    const N: usize = 30_000;
    let chain = |start: &str, link: &str| format!("{{{{ {start}{} }}}}", link.repeat(N));
    let sources = [
        chain("1", "+1"),
        chain("a", ".b"),
        chain("a", "[0]"),
        chain("a", "()"),
        chain("a", "|upper"),
        chain("a", " is defined"),
        chain("1", " and 1"),
        chain("1", " if 1 else 1"),
        chain("1", " == 1"),
        chain("", "not ") + "1",
        chain("", "not ").replace(" }}", "1 }}"),
        chain("", "-").replace(" }}", "1 }}"),
        chain("'a'", " ~ 'a'"),
        chain("2", " ** 2"),
        chain("a", "[0:1]"),
    ];
    refuse_all(&sources, &["operators, above the limit of 500"]);
}

#[test]
fn nesting_does_not_overflow_the_stack() {
    const N: usize = 30_000;
    let nested =
        |open: &str, close: &str| format!("{{{{ {}1{} }}}}", open.repeat(N), close.repeat(N));
    let blocks =
        |open: &str, close: &str, n: usize| format!("{}x{}", open.repeat(n), close.repeat(n));
    let sources = [
        nested("(", ")"),
        nested("[", "]"),
        nested("{'a':", "}"),
        nested("f(", ")"),
        nested("a[", "]"),
        format!("{{{{ {}", "(".repeat(N)),
        format!("{{{{ {}", "1+".repeat(N)),
        blocks("{% if true %}", "{% endif %}", N),
        blocks("{% if true %}", "{% endif %}", 4_000),
        blocks("{% for a in b %}", "{% endfor %}", 4_000),
        blocks("{% macro m() %}", "{% endmacro %}", 4_000),
        blocks("{% generation %}", "{% endgeneration %}", 4_000),
        "x".repeat(2 << 20),
        "{{ 1 }}".repeat(20_000),
    ];
    refuse_all(
        &sources,
        &[
            "above the limit of",
            "recursion limit",
            "no end",
            "more than 10000 tags",
        ],
    );
    // A long chain of alternatives is no error.
    let elif = format!(
        "{{% if false %}}{}{{% endif %}}",
        "{% elif false %}".repeat(9_000)
    );
    assert!(ChatTemplate::compile(&elif, &BTreeMap::new()).is_ok());
}

#[test]
fn a_value_that_contains_itself_is_refused() {
    let set = "{% set ns = namespace() %}{% set ns.x = ns %}";
    let sources = [
        format!("{set}{{{{ ns }}}}"),
        format!("{set}{{{{ ns | tojson }}}}"),
        format!("{set}{{{{ ns ~ '' }}}}"),
        format!("{set}{{{{ ns | string }}}}"),
        format!("{set}{{{{ ns == ns.x }}}}"),
        "{% set ns = namespace() %}{% set ns.x = [{'a': ns}] %}{{ ns }}".to_owned(),
        "{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{{ a }}".to_owned(),
        "{% set ns = namespace() %}{% set a, ns.x = 1, ns %}{{ ns }}".to_owned(),
    ];
    refuse_all(&sources, &["a namespace cannot lie in a namespace"]);
}

#[test]
fn a_value_that_grows_in_a_loop_is_refused() {
    let grow = |start: &str, step: &str| {
        format!(
            "{{% set ns = namespace(l={start}) %}}{{% for i in range(99999) %}}{{% set ns.l = {step} %}}{{% endfor %}}{{{{ ns.l }}}}"
        )
    };
    let mut sources = Vec::new();
    for (start, step) in [
        ("[]", "[ns.l]"),
        ("[]", "{'a': ns.l}"),
        ("[]", "(ns.l,)"),
        ("[1]", "[ns.l, ns.l]"),
        ("[1]", "ns.l + ns.l"),
        ("[1]", "ns.l * 2"),
        ("'x'", "ns.l + ns.l"),
        ("'x'", "ns.l ~ ns.l"),
        ("'x'", "ns.l * 2"),
        ("'x'", "ns.l | replace('x', 'xx')"),
        ("'x'", "ns.l.replace('', 'xx')"),
        ("'x'", "ns.l | indent(1000, true)"),
        ("'x'", "[ns.l, ns.l] | join"),
        ("'x'", "ns.l | tojson"),
        ("'x'", "'%s%s' | format(ns.l, ns.l)"),
        ("'x'", "'{0}{0}'.format(ns.l)"),
        ("['x']", "ns.l | batch(1) | list"),
        ("['x']", "dict(a=ns.l, b=ns.l)"),
        ("['x']", "[ns.l] | map('list') | list"),
    ] {
        sources.push(grow(start, step));
    }
    let macro_ = "{% macro m(x) %}{{ m([x, x]) }}{% endmacro %}{{ m([1]) }}";
    sources.push(macro_.to_owned());
    sources.push("{% macro m(x) %}{{ m(x ~ x) }}{% endmacro %}{{ m('x') }}".to_owned());
    sources.push("{% for x in [[1]] recursive %}{{ loop([[x, x]]) }}{% endfor %}".to_owned());
    let names: Vec<String> = (0..60)
        .map(|n| format!("{{% set a{} = a{n} + a{n} %}}", n + 1))
        .collect();
    sources.push(format!(
        "{{% set a0 = [1] %}}{}{{{{ a60 }}}}",
        names.concat()
    ));
    sources.push(format!(
        "{{% set a0 = 'x' %}}{}{{{{ a60 }}}}",
        names.concat()
    ));
    let pairs: Vec<String> = (0..60)
        .map(|n| format!("{{% for a{} in [[a{n}, a{n}]] %}}", n + 1))
        .collect();
    let ends = "{% endfor %}".repeat(60);
    sources.push(format!(
        "{{% set a0 = [1] %}}{}{{{{ a60 ~ '' }}}}{ends}",
        pairs.concat()
    ));
    refuse_all(
        &sources,
        &[
            "too much work",
            "deep in each other",
            "would be longer",
            "recursion limit",
            "too large",
            "unable to",
        ],
    );
}

#[test]
fn a_huge_width_is_refused() {
    let sources = [
        r#"{{ "{:>100000000000}".format(1) }}"#,
        r#"{{ "{:>99999999999999999999999}".format(1) }}"#,
        r#"{{ "{:.100000000000f}".format(1.0) }}"#,
        r#"{{ "{:0100000000000d}".format(1) }}"#,
        r#"{{ "%99999999999d" | format(1) }}"#,
        r#"{{ "%99999999999d" % 1 }}"#,
        r#"{{ "%*d" % (99999999999, 1) }}"#,
        "{{ '%s' % ([1] * 10**8) }}",
        r#"{{ "%.99999999999f" | format(1.0) }}"#,
        r#"{{ "%*d" | format(99999999999, 1) }}"#,
        "{{ 'x' * 10**12 }}",
        "{{ 10**12 * 'x' }}",
        "{{ [1] * 10**12 }}",
        "{{ ([1] * 10**8) ~ '' }}",
        "{{ ([1] * 10**8) | upper }}",
        "{{ ([1] * 10**8) | join }}",
        "{{ ([1] * 10**8) | string }}",
        "{{ ([1] * 10**8) | list }}",
        "{{ ([1] * 10**8) | tojson }}",
        "{{ ([1] * 10**8) | sort }}",
        "{{ ([1] * 10**8) | length }}{{ '{}'.format([1] * 10**8) }}",
        "{{ '%s' | format([1] * 10**8) }}",
        "{{ 'x'.join(['y'] * 10**8) }}",
        "{{ (1,) * 10**8 }}",
        "{{ range(10**12) }}",
        "{{ range(10**12) | list }}",
        "{% for i in range(10**12) %}{% endfor %}",
        "{{ 'x' | center(10**12) }}",
        "{{ 'x'.center(10**12) }}",
        "{{ 'x'.ljust(10**12) }}",
        "{{ 'x'.zfill(10**12) }}",
        "{{ 'a\nb' | indent(10**12) }}",
        "{{ 'a\nb' | indent(10**12, true) }}",
        "{{ [1] | tojson(indent=10**12) }}",
        "{{ [1, 2] | tojson(separators=['x' * 10**8, '']) }}",
        "{{ [1] | batch(10**12, 'x') | list }}",
        "{{ [1] | slice(10**12) | list }}",
        "{{ ('x' * 10**7) | replace('', 'x' * 10**7) }}",
        "{{ ('x' * 10**7).replace('x', 'x' * 10**7) }}",
        "{{ ['a', 'b'] | join('x' * 10**9) }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ 2 ** (10 ** 12) }}",
        "{{ 'x' | round(10**12) }}",
        "{{ 'a' | wordwrap(10**12) }}{{ 'x' * 10**9 }}",
        "{{ lipsum(10**9) }}",
    ];
    for source in sources {
        refuse(source);
    }
}

#[test]
fn constants_are_not_worked_out_before_anything_pays_for_them() {
    let sources = [
        format!(
            "{{% if false %}}{}{{% endif %}}",
            "{{ 'x' * 100000000 }}".repeat(3_000)
        ),
        format!("{{{{ {}'' }}}}", "'x' * 90000000 + ".repeat(100)),
    ];
    // The first never runs; it must neither fail nor fill the memory.
    assert!(ChatTemplate::compile(&sources[0], &BTreeMap::new()).is_ok());
    refuse(&sources[1]);
}

#[test]
fn recursion_and_other_templates_end() {
    let sources = [
        "{% macro m(x) %}{{ m(x) }}{{ m(x) }}{% endmacro %}{{ m(1) }}",
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% macro m() %}{{ caller() }}{% endmacro %}{% macro r() %}{% call m() %}{{ r() }}{% endcall %}{% endmacro %}{{ r() }}",
        "{% for x in [1] recursive %}{{ loop([x]) }}{% endfor %}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% include 'chat' %}",
        "{% import 'chat' as c %}",
        "{% from 'chat' import c %}",
        "{% extends 'chat' %}",
        "{% if false %}{% include name %}{% endif %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(t='x') %}{% for a in range(99999) %}{% set ns.t = ns.t ~ 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx' %}{% endfor %}{{ 'x' * 99999999 }}",
        "{% generation %}{% for a in range(99999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}{% endgeneration %}",
    ];
    for source in sources {
        refuse(source);
    }
}
