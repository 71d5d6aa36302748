"""Words and values that replace others in overrides, gin, command lines and templates."""

LONG = (b"9" * 5000, b"[" * 3000)
OVERRIDE_WORDS = (
    *b"[0] [99] [[1,2],[3]] nan inf -1 1e999".split(),
    *b"None . = true packed data.sources[0]. model.rope. crossbatch.plan=".split(),
    *b"(1,) ((( ' 1_000 0x10 \xc3\xa9 {} model mesh.data= train.batch_rows=".split(),
    *(b"\n", b"\x00", *LONG),
)
CONFIG_VALUES = (
    *[
        "0",
        "-1",
        "1",
        "2",
        "4",
        "16",
        "1000",
        "1000000000",
        "0.5",
        "1e-9",
        "-1.5",
        "[]",
        "[0]",
        "[1,1]",
        "[2,4,8]",
        "true",
        "false",
        "null",
        "[[0,2],[3,4]]",
        "[[4,0]]",
    ],
    *[
        '"packed"',
        '"two_pass"',
        '"segments"',
        '"own_past"',
        '"constant_range"',
        '"off"',
        '"exact"',
        '"jsonl"',
        '"text"',
        '""',
        '"x"',
    ],
    '[{"name": "a", "kind": "passkey"}]',
)
GIN_WORDS = (
    *b"@ % ModelConfig. %LOCAL_CONTEXT @ModelConfig() @os.system() ( ) [".split(),
    *b"{ ' nan None 1e999 - () macro x/y/ gin.".split(),
    *(
        b"import os\n",
        b"import nothing.here\n",
        b"include 'x.gin'\n",
        b"include 'a.gin'\n",
        b'"""',
        b"\\\n",
        b"__import__",
    ),
    *(b"lambda: 0", b"[" * 500, b"\n\n", b"# ", *LONG),
)
GIN_VALUES = (
    *b"0 -1 1e999 -1e999 1e400j None () (1,2) []".split(),
    *b"{} {1:2} True 'x' b'x' 1j ... {1,2} @ModelConfig() @ModelConfig".split(),
    *b"%LOCAL_CONTEXT %NOPE %gin.REQUIRED @stdlib/SourceConfig() (@stdlib/SourceConfig(),)*2 'a\\nb' '\\ud800'".split(),
    *b"@TrainConfig().steps @gin.macro() @a/macro() @gin.constant() @gin.singleton() 9**9**9 'a'*10**10".split(),
    *(b" 1 if 1 else 2", b"(" * 300 + b")" * 300, b"-" * 3000 + b"1", b"[@ModelConfig()] * 3", *LONG),
)
FLAG_WORDS = (
    *b"-- - = --config. --config.model.num_layers=3 --gin_file=x --help -1".split(),
    *b"nan inf 0 1e9 , ,, --mesh.data=3 \xff".split(),
    *b"--step=0 best {} %s --system=x --chat".split(),
    *b"0.5 99999999999999999999 [* ~ --dtype=float16 \xc2\xb2 --memory.log_length_scaling_from=2".split(),
    *(b"\n", b" ", *LONG),
)
FLAG_VALUES = (
    *b"0 -1 1 2 3 7 64 100000 1000000000000 0.5 -0.5 1e9 1e999".split(),
    *b"nan inf -inf x true True 1,2 , 1,,2 0,0 1,-1 2:1 0:0".split(),
    *b"4:4 4:2:1 best latest 01 1_0 \xc2\xb2 \xd9\xa3 \xff [ [0 {} /nonexistent/x {in} {in}/prompt.txt {out}".split(),
    *b"{in}/hf/model.safetensors cpu:0 cpu:1x1 v5e:0x0 v3:8x8 data=0 data=-1 fsdp=1:fsdp=1 dense scann pallas".split(),
    *(b"", b" ", b"step,step", b"a=b", *LONG),
)
TEMPLATE_WORDS = (
    *b"{{ }} messages |tojson ''.__class__ [99]".split(),
    *(b"{% for x in range(10**9) %}", b"{% endfor %}", b"raise_exception('x')", b"{% set a = a + 1 %}", b"* 10**9"),
    b"{% include 'x' %}",
)
