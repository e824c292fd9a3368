"""Two adapters with an effect on the tiny base, the three models served over HTTP, and OpenAI's own client for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest

from tunesmith.serve.models import ServedModels


@pytest.fixture(scope="session")
def make_adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_adapter(seed)` saves an adapter of the tiny base; `scale` 0 leaves it without effect."""

    def make(seed: int, *, scale: float = 0.3, rank: int = 4) -> Path:
        import torch

        from tunesmith.adapter import attach_lora, save_adapter
        from tunesmith.model import load_base

        base = load_base(str(tiny_base), precision="float32")
        torch.manual_seed(seed)
        model = attach_lora(base, rank=rank, alpha=2.0 * rank, dropout=0.1, targets="all-linear")
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_B" in name:
                    value.normal_(0, scale) if scale else value.zero_()
        folder = tmp_path_factory.mktemp(f"adapter_{seed}")
        save_adapter(model, folder, base=base)
        return folder

    return make


@pytest.fixture(scope="session")
def targets(tiny_base: Path, make_adapter: Callable[..., Path]) -> dict[str, str]:
    return {"red": str(make_adapter(1)), "blue": str(make_adapter(2, rank=2)), "plain": str(tiny_base)}


@pytest.fixture(scope="session")
def served(targets: dict[str, str]) -> ServedModels:
    return ServedModels.load(targets, precision="float32")


@pytest.fixture(scope="session")
def url(served: ServedModels) -> Iterator[str]:
    from tunesmith.serve.app import create_app
    from tunesmith.serve.run import running

    with running(create_app(served)) as url:
        yield url


@pytest.fixture(scope="session")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="not needed", max_retries=0, timeout=30)


@pytest.fixture(scope="session")
def server_url(served: ServedModels) -> Iterator[str]:
    """The whole of `tunesmith server`, with its threads at work and Python graders allowed."""
    from tunesmith.cli.server_verbs import server_parts
    from tunesmith.serve.app import SERVER, create_app
    from tunesmith.serve.run import running

    parts = server_parts(served, python_graders=True)
    with pytest.MonkeyPatch.context() as patched:
        # It lives as long as the session of tests: it must not go looking for other tests' runs.
        patched.setattr("tunesmith.serve.eval_runs.LOOK_S", 3600.0)
        with parts.at_work(), running(create_app(served, routes=SERVER, **parts.state)) as url:
            yield url


@pytest.fixture(scope="session")
def server(server_url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=server_url, api_key="not needed", max_retries=0, timeout=30)
