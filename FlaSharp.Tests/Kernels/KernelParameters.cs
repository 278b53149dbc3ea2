using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using System.Text;
using FlaSharp.Kernels.Attention;
using FlaSharp.Kernels.Gla;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Kernels.Ssd;

namespace FlaSharp.Tests.Kernels;

/// <summary>
/// Which structure each kernel is launched with. A driver refuses one of another size, but a GPU is needed for that: here a cubin
/// is asked.
/// </summary>
internal static class KernelParameters
{
    private const byte SizedFormat = 4, ParameterAttribute = 0x17; // EIFMT_SVAL, EIATTR_KPARAM_INFO

    /// <summary>By source.</summary>
    public static IReadOnlyDictionary<string, Type> Types { get; } = new Dictionary<string, Type>
    {
        ["Activation/swiglu_forward.cu"] = Nested("Activation.SwiGluKernels", "ForwardParameters"),
        ["Activation/swiglu_backward.cu"] = Nested("Activation.SwiGluKernels", "BackwardParameters"),
        ["Attention/append.cu"] = Nested("Attention.AttentionAppendKernels", "Parameters"),
        ["Attention/backward_delta.cu"] = typeof(AttentionBackwardParameters.Delta),
        ["Attention/backward_queries.cu"] = typeof(AttentionBackwardParameters.Queries),
        ["Attention/backward_sinks.cu"] = typeof(AttentionBackwardParameters.Sinks),
        ["Attention/decode.cu"] = Nested("Attention.AttentionDecodeKernels", "DecodeParameters"),
        ["Attention/decode_join.cu"] = Nested("Attention.AttentionDecodeKernels", "JoinParameters"),
        ["Attention/hopper_backward.cu"] = typeof(AttentionBackwardParameters.Hopper),
        ["Attention/hopper_forward.cu"] = typeof(AttentionParameters.HopperForward),
        ["Attention/hopper_wide_backward.cu"] = typeof(AttentionBackwardParameters.Hopper),
        ["Attention/portable_backward.cu"] = typeof(AttentionBackwardParameters.Backward),
        ["Attention/portable_forward.cu"] = typeof(AttentionParameters.PortableForward),
        ["Conv/causal_conv_backward.cu"] = Nested("Conv.CausalConvKernels", "BackwardParameters"),
        ["Conv/causal_conv_forward.cu"] = Nested("Conv.CausalConvKernels", "ForwardParameters"),
        ["Conv/causal_conv_sum.cu"] = Nested("Conv.CausalConvKernels", "SumParameters"),
        ["Gla/chunk_backward.cu"] = typeof(GlaChunkParameters.Backward),
        ["Gla/chunk_backward_pairs.cu"] = typeof(GlaChunkParameters.Backward),
        ["Gla/chunk_forward.cu"] = typeof(GlaChunkParameters.Forward),
        ["Gla/chunk_forward_cluster.cu"] = typeof(GlaChunkParameters.Forward),
        ["Gla/chunk_state.cu"] = typeof(GlaChunkParameters.State),
        ["Gla/decay_gate_backward.cu"] = Nested("Gla.DecayGateKernels", "BackwardParameters"),
        ["Gla/decay_gate_forward.cu"] = Nested("Gla.DecayGateKernels", "ForwardParameters"),
        ["Gla/recurrent_backward.cu"] = Nested("Gla.GlaRecurrentKernels", "BackwardParameters"),
        ["Gla/recurrent_forward.cu"] = Nested("Gla.GlaRecurrentKernels", "ForwardParameters"),
        ["Gla/segment_scan.cu"] = typeof(GlaChunkParameters.Scan),
        ["Gla/small_backward.cu"] = typeof(GlaSmallParameters.Backward),
        ["Gla/small_forward.cu"] = typeof(GlaSmallParameters.Forward),
        ["Gla/small_forward_cluster.cu"] = typeof(GlaSmallParameters.Cluster),
        ["Norm/rms_norm_backward.cu"] = Nested("Norm.RmsNormKernels", "BackwardParameters"),
        ["Norm/rms_norm_forward.cu"] = Nested("Norm.RmsNormKernels", "ForwardParameters"),
        ["Rotary/rotary.cu"] = Nested("Rotary.RotaryKernels", "Parameters"),
        ["SelectiveScan/gradient_sums.cu"] = Nested("SelectiveScan.SelectiveScanKernels", "GradientSumsParameters"),
        ["SelectiveScan/scan_backward.cu"] = Nested("SelectiveScan.SelectiveScanKernels", "BackwardParameters"),
        ["SelectiveScan/scan_forward.cu"] = Nested("SelectiveScan.SelectiveScanKernels", "ForwardParameters"),
        ["SelectiveScan/segment_join.cu"] = Nested("SelectiveScan.SelectiveScanKernels", "SegmentJoinParameters"),
        ["SelectiveScan/segment_state.cu"] = Nested("SelectiveScan.SelectiveScanKernels", "SegmentStateParameters"),
        ["Ssd/chunk_backward.cu"] = typeof(SsdParameters.Backward),
        ["Ssd/chunk_scan.cu"] = typeof(SsdParameters.Scan),
        ["Ssd/recurrence.cu"] = typeof(SsdParameters.Recurrence),
        ["Ssd/steps.cu"] = typeof(SsdParameters.Steps),
        ["Ssd/steps_backward.cu"] = typeof(SsdParameters.StepsBackward),
    };

    /// <summary>Bytes of a structure as a launch passes it.</summary>
    public static int SizeOf(Type structure) =>
        (int)typeof(Unsafe).GetMethod(nameof(Unsafe.SizeOf))!.MakeGenericMethod(structure).Invoke(null, null)!;

    /// <summary>Bytes of a kernel's parameter, as its cubin says; -1 if it does not.</summary>
    /// <param name="cubin">An ELF file.</param>
    /// <param name="entry">The kernel.</param>
    public static int SizeIn(ReadOnlySpan<byte> cubin, string entry)
    {
        var sections = (int)BinaryPrimitives.ReadInt64LittleEndian(cubin[0x28..]);
        var size = BinaryPrimitives.ReadUInt16LittleEndian(cubin[0x3A..]);
        var count = BinaryPrimitives.ReadUInt16LittleEndian(cubin[0x3C..]);
        var names = Section(cubin, BinaryPrimitives.ReadUInt16LittleEndian(cubin[0x3E..]), out _);
        for (var i = 0; i < count; i++)
        {
            var section = Section(cubin, i, out var name);
            var text = names[name..];
            if (Encoding.ASCII.GetString(text[..text.IndexOf((byte)0)]) == $".nv.info.{entry}")
                return ParameterSize(section);
        }
        return -1;

        ReadOnlySpan<byte> Section(ReadOnlySpan<byte> file, int index, out int name)
        {
            var header = file[(sections + index * size)..];
            name = BinaryPrimitives.ReadInt32LittleEndian(header);
            return file.Slice((int)BinaryPrimitives.ReadInt64LittleEndian(header[0x18..]),
                (int)BinaryPrimitives.ReadInt64LittleEndian(header[0x20..]));
        }
    }

    // Records of a format, an attribute and a halfword: the value or, in one format, the bytes of it that follow.
    private static int ParameterSize(ReadOnlySpan<byte> records)
    {
        const int SizeOffset = 8, SizeShift = 18; // after index, number and place; in a word's upper bits
        while (records.Length >= 4)
        {
            var value = records[4..];
            if (records[0] == SizedFormat && records[1] == ParameterAttribute)
                return (int)(BinaryPrimitives.ReadUInt32LittleEndian(value[SizeOffset..]) >> SizeShift);
            records = value[(records[0] == SizedFormat ? BinaryPrimitives.ReadUInt16LittleEndian(records[2..]) : 0)..];
        }
        return -1;
    }

    private static Type Nested(string kernels, string structure) =>
        typeof(KernelCatalog).Assembly.GetType($"FlaSharp.Kernels.{kernels}+{structure}", throwOnError: true)!;
}
