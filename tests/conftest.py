"""What every test stands on: a home of its own, no network, a tiny random model of each family, a small data set.

torch and transformers are imported inside the fixtures, so tests that need neither stay fast.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2, as in SmolLM2
BYTE_TOKENS = 256
DEFAULT_SYSTEM = "You are a helpful assistant."

# SmolLM2's: a system turn is put in when the conversation does not open with one.
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + DEFAULT_SYSTEM + "<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LABELS = {"card": "My card is lost", "refund": "I want my money back", "login": "I cannot sign in"}
SYSTEM = "Answer with one of: card, refund, login."

# The files that take longest, which go first: two processes then end at about the same time.
LONG_FILES = (
    "train/test_kill.py", "test_jobs.py", "train/test_run.py", "serve/test_authorisation.py", "train/test_truth.py",
    "train/test_methods.py", "cli/test_commands.py", "test_jobs_life.py", "cli/test_decide.py",
    "train/test_checkpoint.py", "train/test_memory.py", "cli/test_sweep.py",
)  # fmt: skip

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3")


def pytest_configure() -> None:
    """Before anything is imported: offline, and one thread per test process (two run side by side).

    What imports and collection leave (torch, the tests) lives as long as the process, and looking for cycles in it
    again and again took a fifth of the collection: the garbage collector rests until then, and passes it over after.
    """
    gc.disable()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    places = {here / name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def session_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A home for session fixtures, which start before `tunesmith_home`; the user's own is never touched."""
    os.environ["TUNESMITH_HOME"] = str(tmp_path_factory.mktemp("session_home"))


@pytest.fixture(autouse=True)
def tunesmith_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of this test's own."""
    home = tmp_path / "tunesmith_home"
    monkeypatch.setenv("TUNESMITH_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("TUNESMITH_API_KEY", raising=False)
    return home


@pytest.fixture(scope="session")
def tiny_base(tiny_family: Callable[[str], Path]) -> Path:
    """A folder with a 2-layer Llama of random weights, a byte tokenizer and a ChatML template."""
    return tiny_family("llama")


@pytest.fixture(scope="session")
def tiny_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_family(name)` gives the folder of a tiny random model of one of FAMILIES; built once a session."""
    built: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name not in built:
            built[name] = tmp_path_factory.mktemp(f"tiny_{name}")
            _save_model(name, built[name])
        return built[name]

    return build


@pytest.fixture(scope="session")
def tiny_rows() -> Callable[[int], list[dict[str, Any]]]:
    """`tiny_rows(n)` gives n different rows of a three-label classification set; each fits the tiny models."""
    return make_rows


@pytest.fixture
def tiny_file(tmp_path: Path) -> Path:
    """A chat JSONL file with 60 rows."""
    path = tmp_path / "tiny.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in make_rows(60)), encoding="utf-8")
    return path


def make_rows(n: int) -> list[dict[str, Any]]:
    rows = []
    for index in range(n):
        label, text = list(LABELS.items())[index % len(LABELS)]
        turns = (("system", SYSTEM), ("user", f"{text}, case {index}."), ("assistant", label))
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    return rows


def _save_model(name: str, folder: Path) -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    config = _family_config(name)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(folder)
    _byte_tokenizer().save_pretrained(folder)


def _family_config(name: str) -> Any:
    """Hidden 32, 2 layers, 4 heads, 2 kv heads. The weights are wide (0.1), so that answers depend on the prompt."""
    import transformers

    classes = {
        "llama": transformers.LlamaConfig,
        "mistral": transformers.MistralConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
        "gemma2": transformers.Gemma2Config,
        "gemma3": transformers.Gemma3TextConfig,
        "phi3": transformers.Phi3Config,
    }
    extra: dict[str, Any] = {}
    if name in ("qwen3", "gemma2", "gemma3"):  # these set the head size apart from hidden / heads
        extra["head_dim"] = 8
    if name in ("mistral", "gemma2", "gemma3"):  # shorter than a row, so that the window is at work
        extra["sliding_window"] = 64
    if name in ("gemma2", "gemma3"):
        extra["layer_types"] = ["sliding_attention", "full_attention"]  # one of each kind
        extra["query_pre_attn_scalar"] = 8
    return classes[name](
        vocab_size=len(SPECIAL_TOKENS) + BYTE_TOKENS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        **extra,
    )


def _byte_tokenizer() -> Any:
    """A BPE tokenizer without merges: one token a byte, and ChatML's three special tokens."""
    import tokenizers
    import transformers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert len(alphabet) == BYTE_TOKENS
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHATML,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
