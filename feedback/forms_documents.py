"""Documents that a lead attaches to new prompts: files, or a pasted text."""

from __future__ import annotations

from typing import Any

from django import forms
from django.core.files.uploadedfile import UploadedFile

from accounts.errors import ProductError
from feedback.documents import MAX_DOCUMENTS, MAX_TEXT, MAX_TITLE, Document, check_documents

# UTF-8 takes four bytes a character at most.
MAX_BYTES = 4 * MAX_TEXT


class FilesInput(forms.FileInput):
    """Takes several files."""

    allow_multiple_selected = True


class FilesField(forms.FileField):
    """Several files, each checked like one."""

    widget = FilesInput(attrs={"accept": ".txt,.md,.markdown,text/plain"})

    def clean(self, data: Any, initial: Any = None) -> list[UploadedFile[Any]]:
        return [super(FilesField, self).clean(one, initial) for one in data or []]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool(data)


class DocumentsForm(forms.Form):
    """Documents for every prompt that is added with them."""

    document_files = FilesField(
        label="Text or Markdown files",
        required=False,
        max_length=MAX_TITLE,
        help_text=f"{MAX_DOCUMENTS} documents at most, of {MAX_TEXT:,} characters each, in UTF-8.",
    )
    document_title = forms.CharField(
        label="Title of a pasted document", required=False, max_length=MAX_TITLE
    )
    document_text = forms.CharField(
        label="Its text",
        required=False,
        strip=False,
        widget=forms.Textarea(attrs={"rows": 6, "spellcheck": "false"}),
    )

    def clean_document_files(self) -> list[Document]:
        return [_read(file) for file in self.cleaned_data["document_files"]]

    def clean_document_text(self) -> str:
        # Browsers send line ends as CRLF.
        return str(self.cleaned_data["document_text"]).replace("\r\n", "\n")

    def clean(self) -> None:
        documents = list(self.cleaned_data.get("document_files", []))
        title = self.cleaned_data.get("document_title", "")
        text = self.cleaned_data.get("document_text", "")
        if text.strip():
            documents.append({"title": title or "Pasted text", "text": text})
        elif title:
            self.add_error("document_text", "Paste the text of the document.")
        try:
            self.cleaned_data["documents"] = check_documents(documents)
        except ProductError as error:
            self.add_error("document_files", error.message)


def _read(file: UploadedFile[Any]) -> Document:
    """Return a file as a document named like it."""
    name = file.name or "File"
    if (file.size or 0) > MAX_BYTES:
        raise forms.ValidationError(
            f"“{name}” is larger than {MAX_TEXT:,} characters. Attach the part that matters."
        )
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise forms.ValidationError(f"“{name}” is not UTF-8 text. Save it as text.") from None
    return {"title": name, "text": text.replace("\r\n", "\n")}
