using FlaSharp.Models;
using LanguageModel.Data;
using TorchSharp;
using static TorchSharp.torch;

namespace LanguageModel.Training;

/// <summary>How well a model predicts a text.</summary>
/// <param name="Loss">Nats per token.</param>
/// <param name="NatsPerByte">The same per byte of text, which compares tokenizers.</param>
/// <param name="Tokens">Tokens predicted.</param>
internal readonly record struct Evaluation(double Loss, double NatsPerByte, long Tokens)
{
    public double Perplexity => Math.Exp(Loss);

    /// <param name="model">In evaluation mode.</param>
    /// <param name="tokenizer">Of the tokens.</param>
    /// <param name="tokens">At least <paramref name="length"/> of them.</param>
    /// <param name="length">Tokens per sequence; the first of each is given, not predicted.</param>
    /// <param name="batch">Sequences at a time.</param>
    /// <param name="count">Sequences at most, spread over the text.</param>
    /// <param name="device">Where the model is.</param>
    public static Evaluation Of(
        CausalLM model, ITextTokenizer tokenizer, ReadOnlyMemory<int> tokens, int length, int batch, int count, Device device)
    {
        double nats = 0;
        long predicted = 0;
        long bytes = 0;
        using var _ = no_grad();
        foreach (ReadOnlyMemory<int>[] rows in BatchSampler.Windows(tokens, length, count).Chunk(batch))
        {
            using DisposeScope scope = NewDisposeScope();
            Tensor ids = BatchSampler.Stack(rows).to(device);
            int targets = rows.Length * (length - 1);
            nats += model.Loss(ids, ids).ToDouble() * targets;
            predicted += targets;
            foreach (ReadOnlyMemory<int> row in rows)
                bytes += tokenizer.CountBytes(row.Span[1..]);
        }

        return new Evaluation(nats / predicted, nats / bytes, predicted);
    }
}
