"""The requests that lm-eval's tasks make of their items: prompts with frozen few-shot examples, built once."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from typing import Any

from jinja2.exceptions import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.models.utils import has_bos_prefix

from evomerge.errors import InvalidInput
from evomerge.evaluation.lm_eval.cached_tokenizer import CachedTokenizer
from evomerge.evaluation.lm_eval.harness_seeds import harness_seeds
from evomerge.evaluation.lm_eval.tasks import PreparedTask
from evomerge.messages import in_one_line
from evomerge.packs.items import Part, Split
from evomerge.packs.pack import Pack


class Prompts:
    """The requests of a pack's tasks, part by part.

    Args:
        pack: says how prompts are rendered.
        tasks: lm-eval's, by name.
        split: the items of every part.
        tokenizer: renders chats.
        fewshot_seed: starts the few-shot sampler of every task, for every part.
    """

    def __init__(
        self,
        pack: Pack,
        tasks: Mapping[str, Any],
        split: Split,
        *,
        tokenizer: CachedTokenizer,
        fewshot_seed: int,
    ) -> None:
        self._pack = pack
        self._tasks = tasks
        self._split = split
        self._tokenizer = tokenizer
        self._fewshot_seed = fewshot_seed
        self._parts: dict[Part, dict[str, dict[int, list[Instance]]]] = {}

    def part(self, part: Part) -> dict[str, dict[int, list[Instance]]]:
        """Task -> item -> its requests. Built for a whole part, as few-shot examples depend on earlier draws."""
        if part not in self._parts:
            ids = self._split.parts[part]
            self._parts[part] = {name: self._requests(task, sorted(ids[name])) for name, task in self._tasks.items()}
        return self._parts[part]

    def begin_differently(self, part: Part, tasks: Sequence[str]) -> bool:
        """Whether some of the prompts of texts to be written begin with the BOS text, and others do not."""
        requests = self.part(part)
        prompts = (
            instance.args[0]
            for task in tasks
            for instances in requests[task].values()
            for instance in instances
            if instance.request_type == "generate_until"
        )
        return len({has_bos_prefix(prompt, self._tokenizer.bos_token) for prompt in prompts}) > 1

    def _requests(self, task: Any, ids: list[int]) -> dict[int, list[Instance]]:
        if not ids:
            return {}  # lm-eval would take all documents
        pack = self._pack
        task.set_fewshot_seed(self._fewshot_seed)
        try:
            with harness_seeds(), redirect_stderr(io.StringIO()):  # lm-eval shows a progress bar for every task
                task.build_all_requests(
                    samples=frozenset(ids),  # lm-eval looks every document up in it
                    system_instruction=pack.system_instruction,
                    apply_chat_template=pack.chat_template,
                    fewshot_as_multiturn=pack.multiturn,
                    chat_template=self._render_chat if pack.chat_template else None,
                )
        except Exception as error:  # anything: templates of the task and of the tokenizer are run here
            raise InvalidInput(f"task {task.task_name!r}: its prompts cannot be built: {in_one_line(error)}") from error
        requests: dict[int, list[Instance]] = {item: [] for item in ids}
        for instance in task.instances:
            requests[ids[instance.doc_id]].append(instance)
        for instances in requests.values():
            instances.sort(key=lambda instance: instance.idx)
            if isinstance(task, PreparedTask):
                with harness_seeds():
                    task.remember(instances[0].doc)
        return requests

    def _render_chat(self, history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a chat as `HFLM.apply_chat_template` does; that method needs a model."""
        options = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return str(self._tokenizer.plain.apply_chat_template(history, **options))
        except TemplateError:
            without_system = [message for message in history if message["role"] != "system"]
            return str(self._tokenizer.plain.apply_chat_template(without_system, **options))
