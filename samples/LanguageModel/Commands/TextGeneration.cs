using FlaSharp.Models;
using LanguageModel.Data;
using static TorchSharp.torch;

namespace LanguageModel.Commands;

internal static class TextGeneration
{
    /// <summary>Writes the prompt and its continuation as it comes.</summary>
    public static void Stream(CausalLM model, ITextTokenizer tokenizer, string prompt, GenerationOptions options, Device device,
        TextWriter output, CancellationToken stop)
    {
        model.eval();
        output.Write(prompt);
        long[] ids = Array.ConvertAll(tokenizer.Encode(prompt), token => (long)token);
        using var promptIds = tensor(ids, [1, ids.Length], device: device);
        var text = new TextStream(tokenizer);
        foreach (long[] tokens in model.GenerateTokens(promptIds, options))
        {
            output.Write(text.Append((int)tokens[0]));
            output.Flush();
            if (stop.IsCancellationRequested)
                break;
        }

        output.WriteLine();
    }
}
