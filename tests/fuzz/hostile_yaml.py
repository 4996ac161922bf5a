"""Hostile YAML: tags, recursive and exponentially growing anchors, unusual keys and numbers."""

TAGS = (
    *("!!int abc", "!!int ''", "!!int [1]", "!!int 0b2", "!!int 1:99", "!!float x", "!!float {}"),
    *("!!bool maybe", "!!bool []", "!!null x", "!!null [a]", "!!timestamp 2020-99-99"),
    *(
        "!!timestamp x",
        "!!timestamp [1]",
        "!!timestamp 2020-01-01",
        "!!binary '*'",
        "!!binary 'aGk='",
    ),
    *("!!binary é", "!!set {a, b}", "!!set [a]", "!!set x", "!!omap [a: 1]", "!!omap {a: 1}"),
    *("!!omap [1]", "!!pairs [a: 1]", "!!pairs a", "!!seq {}", "!!seq x", "!!map []", "!!map x"),
    *(
        "!!str [a]",
        "!!str 12",
        "!!merge x",
        "!!value x",
        "!foo bar",
        "!<tag:x> y",
        "! x",
        "!!x",
        "!",
    ),
    *("!!python/object/apply:os.mkdir [ran]", "!!python/name:os.system", "!!python/tuple [1]"),
    *("!!python/object:os.x {}", "!!python/none", "!!python/bytes x", "!!python/module:os ''"),
)
NUMBERS = (
    *(
        "9" * 5000,
        "1" * 200_000,
        "-" + "9" * 4301,
        "0." + "9" * 5000,
        "1e999",
        "1e-999",
        "1e99999999",
    ),
    *(
        "-.inf",
        ".inf",
        ".nan",
        "1_000",
        "1__0",
        "_1",
        "010",
        "0x1F",
        "0b11",
        "0o17",
        "1:30",
        "1.",
        ".5",
    ),
    *(
        "+1",
        "+-1",
        "1e2",
        "1E+2",
        "1e",
        "--1",
        "٣",
        "½",
        "NaN",
        "Infinity",
        "1,5",
        "1 000",
        "0x" + "f" * 9999,
    ),
    *(
        "yes",
        "no",
        "on",
        "off",
        "True",
        "TRUE",
        "tRue",
        "~",
        "null",
        "Null",
        "''",
        '""',
        "-",
        "=",
        "<<",
    ),
)
ANCHORS = (
    *(
        "&a [*a]",
        "&a {b: *a}",
        "&a {<<: *a}",
        "[&a [*a], *a]",
        "*undefined",
        "&a",
        "&a &b 1",
        "&a *a",
    ),
    *("{<<: [1]}", "{<<: x}", "{<<: {lr: 1}}", "{<<: [{a: 1}, {a: 2}]}", "{<<: ~}", "{<<: [[]]}"),
    *("{x: &a {y: 1}, z: *a}", "[&a 1, *a]", "{&a a: *a}", "{<<: {<<: {<<: {a: 1}}}}"),
)
KEYS = (
    *(
        "{[a]: b}",
        "{{a: b}: c}",
        "{? [a] : b}",
        "{~: 1}",
        "{1: 2}",
        "{1.5: 2}",
        "{true: 2}",
        "{.nan: 2}",
    ),
    *("{a: 1, a: 2}", "{'': 1}", "{a.b: 1}", "{? a}", "{a}", "{!!int x: 1}", "{&a x: 1, *a : 2}"),
    *("{? &a [*a] : 1}", "{!!binary aGk=: 1}", "{2020-01-01: 1}", "{" + "k" * 5000 + ": 1}"),
    *("{[]: 1, []: 2}", "{1: a, 1.0: b}", "{'\\u0000': 1}", '{"\\e[31m": 1}', '{"a\\nb": 1}'),
)
TEXTS = (
    *(
        '"\\u0000"',
        '"\\e[31mred"',
        '"a\\nb"',
        '"\\ud800"',
        '"\\U0011ffff"',
        '"\\x"',
        "'",
        '"',
        "|",
        ">",
    ),
    *(
        "|9\n a",
        "|-\n  a\n  b",
        "a: b: c",
        "[",
        "]",
        "{",
        "}",
        "[a",
        "{a: ",
        "@x",
        "`x",
        "%x",
        "a # b",
    ),
    *(
        "\tx",
        "x\ty",
        "\x07",
        "\u2028",
        "\u0085",
        "\ufeff",
        "é",
        "- a\n- b",
        "? x",
        "--- x",
        "... x",
    ),
    *("[" * 2000 + "]" * 2000, "[" * 100_000, "{a: " * 1000 + "1" + "}" * 1000, "a" * 100_000),
    *("- " * 2000 + "x", "'" * 10_000, '"' + "\\u0041" * 20_000 + '"', "a,b", "$HOME/x", "~/x"),
)
VALUES = TAGS + NUMBERS + ANCHORS + KEYS + TEXTS


def bomb(kind: str, depth: int, width: int) -> str:
    """Return a short document of `width` ** `depth` values, by nested lists, mappings or merges."""
    lines = ["a0: &a0 {x: 1}" if kind != "list" else "a0: &a0 [x, x]"]
    for level in range(1, depth):
        names = [f"*a{level - 1}"] * width
        if kind == "list":
            value = f"[{', '.join(names)}]"
        elif kind == "mapping":
            value = "{" + ", ".join(f"k{i}: {name}" for i, name in enumerate(names)) + "}"
        else:
            value = f"{{<<: [{', '.join(names)}], y{level}: 1}}"
        lines.append(f"a{level}: &a{level} {value}")
    return "\n".join(lines) + "\n"


DOCUMENTS = (
    *(bomb(kind, depth, 10) for kind in ("list", "mapping", "merge") for depth in (3, 9, 30)),
    *(f"optim:\n  lr: *a\nx: &a {value}\n" for value in ("1", "[*a]")),
    *(
        "",
        "~\n",
        "# nothing\n",
        "[]\n",
        "{}\n",
        "x\n",
        "12\n",
        "- a\n",
        "---\n---\n",
        "--- {}\n--- {}\n",
    ),
    *(
        "%YAML 3.0\n---\n{}\n",
        "%TAG ! tag:x,2000:\n---\n!x y\n",
        "%x\n---\n{}",
        "...\n",
        "--- !!set {a}\n",
    ),
    *(
        "!!python/object/apply:os.mkdir [ran]\n",
        "&a {seed: *a}\n",
        "&a [*a]\n",
        "seed: 1\nseed: 2\n",
    ),
    *("seed: 1\n\tloop: 2\n", "loop:\n   max_steps: 1\n  log_every: 2\n", "task: [detection]\n"),
    *("task: {a: 1}\n", "task: ~\n", "task: ''\n", "task: 1\n", "task: &a [*a]\n", "base: ~\n"),
    *(
        "base: ''\n",
        "base: .\n",
        "base: /\n",
        "base: config.yaml\n",
        "base: [config.yaml]\n",
        "base: 1\n",
    ),
    *("base: ../config.yaml\n", "base: /dev/zero\n", 'base: "a\\0b"\n', f"base: {'x' * 300}\n"),
    *(
        "base: {}\n",
        "base: ~/x.yaml\n",
        "base: fifo.yaml\n",
        "base: http://x/y.yaml\n",
        "base: true\n",
    ),
    *(
        "loop: 1\n",
        "loop: []\n",
        "loop: ~\n",
        "loop: x\n",
        "loop: [max_steps]\n",
        "model: {roi: 3}\n",
    ),
    *(
        "? loop\n",
        "? [loop]\n: 1\n",
        "<<: {seed: 1}\n",
        "<<: x\n",
        "=: 1\n",
        "'loop.max_steps': 3\n",
    ),
)
