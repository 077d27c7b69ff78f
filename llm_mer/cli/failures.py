"""Failures of the machine, not of this program, as one line: a place that cannot be used, memory that is exhausted."""

from __future__ import annotations

from llm_mer.errors import first_line, is_out_of_memory
from llm_mer.storage.system_errors import describe_system_error, error_chain

EXHAUSTED = (
    "memory is exhausted ({told}); take smaller batches: --batch_size where questions are answered, in training "
    "--per_device_train_batch_size with more --gradient_accumulation_steps, and --per_device_eval_batch_size"
)


def explain_failure(error: BaseException) -> str | None:
    """What to say of an error that the machine is to blame for; None for any other, which is a defect.

    Its causes are looked at too: a library may wrap what the system said.
    """
    for each in error_chain(error):
        if is_out_of_memory(each):
            return EXHAUSTED.format(told=first_line(each)[:120])
    return describe_system_error(error)
