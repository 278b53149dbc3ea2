using System.CommandLine;
using LanguageModel.Data;
using LanguageModel.Training;
using TorchSharp;

namespace LanguageModel.Commands;

/// <summary>eval: the loss on a text.</summary>
internal static class EvalCommand
{
    public static Command Create()
    {
        var checkpoint = new Option<string>("--checkpoint") { Description = "A run or one of its checkpoints.", Required = true };
        var data = new Option<string>("--data") { Description = "A text file, or a folder of them.", Required = true };
        var seq = Choices.AtLeastIfGiven("--seq", "Tokens per sequence, as in training without it.", 2);
        Option<string?> device = Devices.Option();
        var command = new Command("eval", "Measures how well a trained model predicts a text.") { checkpoint, data, seq, device };
        command.SetAction(parsed =>
        {
            string path = parsed.GetValue(data)!;
            string text = Corpus.ReadText(path);
            torch.Device where = Devices.Choose(parsed.GetValue(device));
            using var loaded = LoadedModel.From(parsed.GetValue(checkpoint)!, where);
            int length = parsed.GetValue(seq) ?? loaded.Options.Seq;
            int[] tokens = loaded.Tokenizer.Encode(text);
            if (tokens.Length < length)
                throw new UserError($"--data {path}: {tokens.Length} tokens are too few for sequences of {length}; use --seq.");

            var result = Evaluation.Of(
                loaded.Model, loaded.Tokenizer, tokens, length, loaded.Options.Batch, count: int.MaxValue, where);
            Console.WriteLine(FormattableString.Invariant($"loss={result.Loss:F4} nats_per_byte={result.NatsPerByte:F4} ")
                + FormattableString.Invariant($"perplexity={result.Perplexity:F3} tokens={result.Tokens}"));
            return 0;
        });
        return command;
    }
}
