"""``had.load``: whatever student a name stands for, with the head of a task or without."""

import os

from had.models.heads import HADForSequenceClassification
from had.models.saving import CLASSIFIER_TYPE, DEFAULT_MODEL, find_folder, model_type_of
from had.models.student import HADModel


def load(name: str | os.PathLike[str] | None = None) -> HADModel | HADForSequenceClassification:
    """Load a student by a bundled name, a folder or a Hub repository; default: the bundled student.

    Parameters
    ----------
    name
        The folder may be that of a model, or of the run that made it.

    Returns
    -------
    HADModel, or of a fine-tuned model HADForSequenceClassification: on the CPU, in evaluation mode. Both have
    ``embed``; a fine-tuned model has ``predict``, too.

    Raises
    ------
    had.errors.UserError
        Nothing of that name is found, or its files are missing, damaged or of another model.
    """
    folder = find_folder(DEFAULT_MODEL if name is None else name)
    if model_type_of(folder) == CLASSIFIER_TYPE:
        return HADForSequenceClassification.from_pretrained(folder)
    return HADModel.from_pretrained(folder)
