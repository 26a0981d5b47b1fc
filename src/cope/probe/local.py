"""Asking a Hugging Face model that runs here, on a GPU where there is one.

The prompt goes through the tokenizer's chat template where it has one; a model without is given the bare prompt to continue.
The weights are loaded in the precision that transformers chooses.
"""

from __future__ import annotations

import torch

from cope.errors import UserError
from cope.probe.responder import Reply
from cope.probe.settings import ProbeSettings


class LocalModel:
    """A causal language model of the package transformers. See :class:`cope.probe.responder.Responder`.

    Raises:
        UserError: the package is missing, or the model cannot be loaded.
    """

    def __init__(self, settings: ProbeSettings) -> None:
        key = f"local={settings.local}"
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise UserError(
                f"{key} needs the package transformers, which is not installed: pip install transformers\n"
                "Without it, a server can be asked: endpoint=http://host:port/v1 model=NAME"
            ) from error
        self._settings = settings
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(settings.local)
            self._model = AutoModelForCausalLM.from_pretrained(settings.local).to(self._device).eval()
        except Exception as error:  # transformers raises the errors of several libraries, which share no base class
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UserError(
                f"{key} cannot be loaded ({reason}); allowed: a folder of save_pretrained, or a model's name on the Hub."
            ) from error

    @torch.no_grad()
    def reply(self, prompt: str, seed: int) -> Reply:
        if self._tokenizer.chat_template:
            messages = [{"role": "user", "content": prompt}]
            inputs = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            inputs = self._tokenizer(prompt, return_tensors="pt")
        inputs = inputs.to(self._device)
        # top_k=0, because transformers would keep the 50 likeliest tokens alone, on top of what top_p keeps.
        sampling = {"temperature": self._settings.temperature, "top_p": self._settings.top_p, "top_k": 0}
        greedy = self._settings.temperature == 0
        torch.manual_seed(seed)
        output = self._model.generate(
            **inputs, max_new_tokens=self._settings.max_tokens, do_sample=not greedy, **({} if greedy else sampling)
        )
        new_tokens = output[0, inputs["input_ids"].shape[1] :]
        cut = len(new_tokens) == self._settings.max_tokens
        return Reply(self._tokenizer.decode(new_tokens, skip_special_tokens=True), "length" if cut else "stop")
