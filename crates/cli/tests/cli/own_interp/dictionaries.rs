//! `densely interp transcoder`, `circuit` and `greater-than` on the tiny model.

use serde_json::Value;

use super::super::{Bench, stdout};
use super::failure;

/// A bench with the tiny model and a text.
fn bench() -> Bench {
    let bench = Bench::new();
    bench.model();
    let sentence = "The tower stands in the old town. The bridge stands in the new one, and a river runs below it.\n";
    bench.write("words.txt", &sentence.repeat(60));
    bench.write(
        "others.txt",
        &"A river stands in the tower, and the town runs below a bridge.\n".repeat(12),
    );
    bench
}

const SMALL: [&str; 14] = [
    "--text",
    "words.txt",
    "--test-text",
    "others.txt",
    "--context",
    "16",
    "--buffer",
    "1024",
    "--batch",
    "256",
    "--features",
    "48",
    "--test-windows",
    "8",
];

fn transcoder<'a>(command: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    let words = ["interp", "transcoder", command, "tiny", "--device", "cpu"];
    [words.as_slice(), rest].concat()
}

fn train<'a>(rest: &[&'a str]) -> Vec<&'a str> {
    transcoder("train", &[SMALL.as_slice(), rest].concat())
}

#[test]
fn a_transcoder_is_trained_judged_read_and_shown() {
    let bench = bench();
    let rest = [
        "--layer", "1", "--k", "8", "--store", "kept", "--out", "run",
    ];
    let made = bench.json(&train(&[rest.as_slice(), &["--json"]].concat()));
    let l0 = made["dictionaries"][0]["l0"].as_f64().unwrap();
    assert!(l0 > 0.0 && l0 <= 8.0, "{made}");
    assert!(made["ce_clean"].as_f64().unwrap() > 0.0 && made["steps"].as_u64().unwrap() > 10);
    for name in [
        "config.toml",
        "report.md",
        "evaluation.json",
        "plots/density.svg",
        "dictionary/cfg.json",
        "dictionary/sae.safetensors",
    ] {
        assert!(bench.path("run").join(name).is_file(), "{name}");
    }
    // Judged again alone: the same figures.
    let eval = transcoder(
        "eval",
        &[
            "--dictionary",
            "run",
            "--text",
            "others.txt",
            "--context",
            "16",
            "--windows",
            "8",
        ],
    );
    let again = bench.json(&[eval.as_slice(), &["--json"]].concat());
    for name in ["ce_clean", "ce_replaced", "ce_ablated", "kl"] {
        let (a, b) = (made[name].as_f64().unwrap(), again[name].as_f64().unwrap());
        assert!((a - b).abs() < 1e-5, "{name}: {a} {b}");
    }
    assert!(stdout(&bench.densely(&eval).success()).contains("recovered"));
    let features = transcoder(
        "features",
        &[
            "--dictionary",
            "run",
            "--text",
            "words.txt",
            "--context",
            "16",
            "--out",
            "read",
        ],
    );
    let found = bench.json(&[features.as_slice(), &["--json"]].concat());
    let shown = found["shown"].as_u64().unwrap();
    assert!(shown > 0, "{found}");
    let lines = std::fs::read_to_string(bench.path("read").join("features.jsonl")).unwrap();
    assert_eq!(lines.lines().count() as u64, shown);
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let first = &line["examples"][0];
        let peak = first["peak"].as_u64().unwrap() as usize;
        assert!(first["activations"][peak].as_f64().unwrap() > 0.0, "{line}");
    }
    let page = std::fs::read_to_string(bench.path("read").join("features.html")).unwrap();
    assert!(page.contains("Feature ") && page.ends_with("</html>\n"));
    let show = [
        "interp",
        "transcoder",
        "show",
        "run",
        "--feature",
        "3",
        "--model",
        "tiny",
    ];
    let shown = stdout(&bench.densely(&show).success());
    assert!(
        shown.contains("48 features") && shown.contains("promotes"),
        "{shown}"
    );
}

#[test]
fn several_layers_share_the_passes_and_become_a_circuit() {
    let bench = bench();
    let rest = [
        "--layer", "0,1", "--k", "6", "--store", "kept", "--out", "both",
    ];
    bench.densely(&train(&rest)).success();
    let folders = "both/blocks-0-hook_mlp_out,both/blocks-1-hook_mlp_out";
    let words = [
        "interp",
        "circuit",
        "tiny",
        "--device",
        "cpu",
        "--dictionary",
        folders,
        "--prompt",
        "The tower stands in",
        "--prompt",
        "The bridge",
        "--prompt",
        "A river runs",
        "--text",
        "words.txt",
        "--windows",
        "4",
        "--paths",
        "5",
        "--out",
        "circuits",
    ];
    let made = bench.json(&[words.as_slice(), &["--json"]].concat());
    let made = made.as_array().unwrap();
    assert_eq!(made.len(), 3);
    for one in made {
        assert!(one["completeness"].as_f64().unwrap() < 1e-4, "{one}");
        assert_eq!(one["paths"].as_array().unwrap().len(), 5);
        let name = one["name"].as_str().unwrap();
        let graph = std::fs::read_to_string(bench.path("circuits").join(format!("{name}.json")));
        let graph: Value = serde_json::from_str(&graph.unwrap()).unwrap();
        assert_eq!(
            graph["nodes"].as_array().unwrap().len() as u64,
            one["nodes"].as_u64().unwrap()
        );
        let page = std::fs::read_to_string(bench.path("circuits").join(format!("{name}.html")));
        assert!(page.unwrap().contains("application/json"));
    }
    let shown = stdout(&bench.densely(&words).success());
    assert!(
        shown.contains("the-tower-stands-in: ") && shown.contains("←"),
        "{shown}"
    );
    let twice = failure(
        &bench,
        &[
            "interp",
            "circuit",
            "tiny",
            "--device",
            "cpu",
            "--dictionary",
            "both/blocks-0-hook_mlp_out,both/blocks-0-hook_mlp_out",
            "--prompt",
            "The tower",
        ],
    );
    assert!(twice.contains("a second one of its layer"), "{twice}");
    // A folder that does not say where it stands, such as one of another program.
    let own = bench.path("both/blocks-0-hook_mlp_out/dictionary");
    let other = bench.path("silent");
    std::fs::create_dir(&other).unwrap();
    let weights = "sae.safetensors";
    std::fs::copy(own.join(weights), other.join(weights)).unwrap();
    let config = std::fs::read_to_string(own.join("cfg.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config.as_object_mut().unwrap().remove("metadata").unwrap();
    bench.write("silent/cfg.json", &config.to_string());
    let circuit = |dictionary: &str, rest: &[&str]| -> Vec<String> {
        let words = ["interp", "circuit", "tiny", "--device", "cpu", "--prompt"];
        let first = ["The tower", "--out", "silent-circuits", "--dictionary"];
        [words.as_slice(), &first, &[dictionary], rest]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect()
    };
    let refused = |dictionary: &str, rest: &[&str], words: &str| {
        let all = circuit(dictionary, rest);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let message = failure(&bench, &all);
        assert!(message.contains(words), "{dictionary} {rest:?}: {message}");
    };
    for place in ["0", "blocks.0.hook_mlp_out"] {
        let all = circuit(&format!("{place}=silent"), &["--json"]);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let made = bench.json(&all);
        assert!(made[0]["completeness"].as_f64().unwrap() < 1e-4);
    }
    refused("silent", &[], "LAYER=silent");
    refused("7=silent", &[], "blocks.7");
    refused("0=silent", &["--nodes", "2"], "--nodes");
    refused("0=silent", &["--paths", "0"], "--paths");
    refused("0=silent", &["--probability", "2"], "logit_probability");
    let long = "The tower stands in. ".repeat(40);
    // It is said before the survey that would fail.
    let late = ["--text", "no/such", "--prompt", long.as_str()];
    refused("0=silent", &late, "more than the");
    let years = failure(
        &bench,
        &["interp", "greater-than", "tiny", "--device", "cpu"],
    );
    assert!(years.contains("without a token for `00`"), "{years}");
}

#[test]
fn kinds_are_compared_on_one_store() {
    let bench = bench();
    let words = transcoder(
        "compare",
        &[
            SMALL.as_slice(),
            &[
                "--layer", "1", "--ks", "2,8", "--store", "kept", "--out", "all",
            ],
        ]
        .concat(),
    );
    let made = bench.json(&[words.as_slice(), &["--json"]].concat());
    let points = made["points"].as_array().unwrap();
    assert_eq!(points.len(), 4);
    for pair in points.chunks(2) {
        let explained = |i: usize| pair[i]["explained"].as_f64().unwrap();
        assert!(explained(1) > explained(0), "{pair:?}");
    }
    for name in ["ce.svg", "explained.svg", "compare.json"] {
        assert!(bench.path("all").join(name).is_file(), "{name}");
    }
    let again = bench
        .densely(&[words.as_slice(), &["--resume"]].concat())
        .success();
    assert!(stdout(&again).contains("| transcoder | 8 |"));
}

#[test]
fn dictionaries_are_written_for_other_packages() {
    let bench = bench();
    let rest = [
        "--layer",
        "1",
        "--style",
        "paper",
        "--coefficient",
        "0.001",
        "--out",
        "paper",
    ];
    bench.densely(&train(&rest)).success();
    let convert = |rest: &[&'static str]| {
        [
            ["interp", "transcoder", "convert", "paper"].as_slice(),
            rest,
        ]
        .concat()
    };
    bench
        .densely(&convert(&["lens", "--to", "sae-lens"]))
        .success();
    assert!(bench.path("lens/sae_weights.safetensors").is_file());
    let show = ["interp", "transcoder", "show", "lens", "--json"];
    let shown = bench.json(&show);
    assert_eq!(shown["metadata"]["hook_name_out"], "blocks.1.hook_mlp_out");
    let refused = failure(&bench, &convert(&["other", "--to", "sparsify"]));
    assert!(
        refused.contains("has the k largest features alone"),
        "{refused}"
    );
    let again = failure(&bench, &convert(&["lens"]));
    assert!(again.contains("holds something already"), "{again}");
}

#[test]
fn wrong_arguments_are_told() {
    let bench = bench();
    let case = |rest: &[&str], words: &str| {
        let message = failure(&bench, &train(rest));
        assert!(message.contains(words), "{rest:?}: {message}");
    };
    case(&["--layer", "9"], "blocks.9");
    case(&["--read", "blocks.1.hook_nothing"], "hook_nothing");
    case(&["--k", "100"], "activation.k");
    case(&["--style", "paper", "--k", "3"], "--coefficient");
    case(&["--coefficient", "3"], "--k");
    case(&["--lr=-1"], "lr");
    let long = transcoder(
        "train",
        &["--text", "words.txt", "--context", "64", "--layer", "1"],
    );
    assert!(failure(&bench, &long).contains("context"));
    bench.write("empty.txt", "");
    let message = failure(&bench, &transcoder("train", &["--text", "empty.txt"]));
    assert!(message.contains("no token"), "{message}");
    let message = failure(
        &bench,
        &transcoder("eval", &["--dictionary", "no/such", "--text", "words.txt"]),
    );
    assert!(message.contains("no/such"), "{message}");
    let both = transcoder(
        "eval",
        &["--dictionary", "a,b", "--read", "x", "--text", "words.txt"],
    );
    assert!(failure(&bench, &both).contains("for one dictionary"));
    // A run is neither begun over nor resumed unasked.
    let rest = ["--layer", "1", "--k", "4", "--out", "run"];
    bench.densely(&train(&rest)).success();
    let message = failure(&bench, &train(&rest));
    assert!(message.contains("run"), "{message}");
    let other = ["--layer", "1", "--k", "5", "--out", "run", "--resume"];
    let message = failure(&bench, &train(&other));
    assert!(message.contains("activation"), "{message}");
}

/// What a page is asked by in a browser: each node is chosen, and the numbers beside it are read.
const ASK: &str = "<script>
const said = [], errors = [];
window.addEventListener('error', (event) => errors.push(event.message));
for (const node of document.querySelectorAll('g.node')) {
  node.dispatchEvent(new MouseEvent('click'));
  for (const button of document.querySelectorAll('#panel button')) if (button.textContent.startsWith('all ')) button.click();
  said.push([...document.querySelectorAll('#panel .number')].map((own) => own.textContent));
}
const all = document.createElement('pre');
all.id = 'said';
all.textContent = JSON.stringify({ title: document.title, said, errors });
document.body.append(all);
</script></body>";

/// What a real browser makes of a page: its document, and what its console said.
fn browse(browser: &std::ffi::OsStr, page: &std::path::Path) -> (String, String) {
    let found = std::process::Command::new(browser)
        .args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=5000",
        ])
        .args(["--enable-logging=stderr", "--dump-dom"])
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("DENSELY_BROWSER starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (text(found.stdout), text(found.stderr))
}

/// `DENSELY_BROWSER=chromium cargo test --workspace -- --ignored pages_open_in_a_browser`
#[test]
#[ignore = "needs a browser: DENSELY_BROWSER names chromium"]
fn pages_open_in_a_browser_and_show_the_graphs_numbers() {
    let browser = std::env::var_os("DENSELY_BROWSER").expect("DENSELY_BROWSER names a browser");
    let bench = bench();
    let rest = [
        "--layer", "0,1", "--k", "6", "--store", "kept", "--out", "both",
    ];
    bench.densely(&train(&rest)).success();
    let words = [
        "interp",
        "circuit",
        "tiny",
        "--device",
        "cpu",
        "--dictionary",
        "both/blocks-0-hook_mlp_out,both/blocks-1-hook_mlp_out",
        "--prompt",
        "The tower stands in",
        "--prompt",
        "The bridge",
        "--prompt",
        "A river runs",
        "--text",
        "words.txt",
        "--windows",
        "4",
        "--out",
        "circuits",
        "--json",
    ];
    let made = bench.json(&words);
    for one in made.as_array().unwrap() {
        let name = one["name"].as_str().unwrap();
        let page = bench.path("circuits").join(format!("{name}.html"));
        let text = std::fs::read_to_string(&page).unwrap();
        let asked = bench.write("asked.html", &text.replace("</body>", ASK));
        for path in [&page, &asked] {
            let (_, console) = browse(&browser, path);
            assert!(!console.contains("CONSOLE"), "{name}: {console}");
        }
        let (document, _) = browse(&browser, &asked);
        let said = document
            .split("<pre id=\"said\">")
            .nth(1)
            .expect("the answer");
        let said = said.split("</pre>").next().unwrap();
        let said: Value =
            serde_json::from_str(&said.replace("&amp;", "&").replace("&lt;", "<")).unwrap();
        assert_eq!(said["errors"].as_array().unwrap().len(), 0, "{said}");
        let graph = std::fs::read_to_string(bench.path("circuits").join(format!("{name}.json")));
        let graph: Value = serde_json::from_str(&graph.unwrap()).unwrap();
        let nodes = graph["nodes"].as_array().unwrap();
        let shown = said["said"].as_array().unwrap();
        assert_eq!(shown.len(), nodes.len(), "{name}");
        let mut numbers = 0;
        for (node, shown) in nodes.iter().zip(shown) {
            let side = |own: &str| {
                let links = graph["links"].as_array().unwrap().iter();
                let mut all: Vec<f64> = links
                    .filter(|link| link[own] == node["node_id"])
                    .map(|link| link["weight"].as_f64().unwrap())
                    .collect();
                all.sort_by(|a, b| b.abs().total_cmp(&a.abs()));
                all
            };
            let expected = [side("target"), side("source")].concat();
            let shown = shown.as_array().unwrap();
            assert_eq!(shown.len(), expected.len(), "{name}: {}", node["node_id"]);
            for (text, expected) in shown.iter().zip(expected) {
                let text = text.as_str().unwrap().replace('\u{2212}', "-");
                let value: f64 = text.parse().unwrap();
                // Three digits are shown.
                assert!(
                    (value - expected).abs() <= 0.006 * expected.abs(),
                    "{name}: {value} {expected}"
                );
                numbers += 1;
            }
        }
        assert!(numbers > 20, "{name} shows {numbers} numbers");
    }
}
