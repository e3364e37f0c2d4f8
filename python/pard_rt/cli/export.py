"""`pard-rt export`: a Hugging Face decoder to an ONNX folder."""

from __future__ import annotations

import argparse

from pard_rt.cli.output import format_bytes, paint, print_field
from pard_rt.errors import requiring
from pard_rt.migraphx import describe
from pard_rt.models.find import folder_size
from pard_rt.progress import progress


def run_export(arguments: argparse.Namespace) -> int:
    """Export, and say how well the graph agrees with the module it came from."""
    with progress(f"exporting {arguments.source}") as shown:
        with requiring("export", "An export"):
            from pard_rt.exporter import export
            from pard_rt.models.checkpoint import hush_transformers
        hush_transformers()
        weights = f", {arguments.weights}" if arguments.weights else ""
        shown.text = f"exporting {arguments.source} as {arguments.form}{weights}"
        report = export(
            arguments.source,
            arguments.out,
            form=arguments.form,
            weights=arguments.weights,
            fp16_files=arguments.fp16_files,
            head_on_all_rows=arguments.head_on_all_rows,
            head_tokens=arguments.head_tokens,
            head_data=arguments.head_data,
            mask_token_id=arguments.mask_token_id,
            max_length=arguments.max_length,
            revision=arguments.revision,
            trust_remote_code=arguments.trust_remote_code,
        )
    found = report.agreement
    size = format_bytes(folder_size(report.folder))
    print(f"{paint(str(report.folder), 'bold')}  {report.form}, {report.weights}, {size}")
    print("compared with PyTorch, on texts that the model wrote:")
    print_field("largest difference", f"{found.max_error:.2g} of the largest logit", width=24)
    print_field("KL divergence", f"{found.kl_divergence:.2g} nats", width=24)
    print_field("same likeliest token", f"in {100 * found.same_argmax:.1f}% of the rows", width=24)
    if report.requires_own_attention:
        print_field("attention", "pard-rt's, on the CPU only (--form portable: anywhere)", width=24)
    if report.form == "portable":
        print_field("on MIGraphX", describe(report.folder), width=24)
    return 0
