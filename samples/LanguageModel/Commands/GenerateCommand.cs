using System.CommandLine;
using FlaSharp.Models;
using TorchSharp;

namespace LanguageModel.Commands;

/// <summary>generate: continues a text.</summary>
internal static class GenerateCommand
{
    public static Command Create(CancellationToken stop)
    {
        var checkpoint = new Option<string>("--checkpoint") { Description = "A run or one of its checkpoints.", Required = true };
        var prompt = new Option<string>("--prompt") { Description = "The text to continue.", Required = true };
        var tokens = Choices.AtLeast("--tokens", "Tokens to write.", 1, 300);
        var temperature = Choices.AtLeast("--temperature", "0 takes the likeliest token; 1 samples as trained.", 0.0, 0.7);
        var topK = Choices.AtLeastIfGiven("--top-k", "Sample among this many likeliest tokens.", 1);
        var topP = Choices.AtLeast("--top-p", "Sample among the likeliest tokens of this probability together.", 1e-9, 1.0);
        var seed = Choices.AtLeastIfGiven("--seed", "Repeats a text.", 0L);
        Option<string?> device = Devices.Option();

        var command = new Command("generate", "Continues a text with a trained model.")
        {
            checkpoint, prompt, tokens, temperature, topK, topP, seed, device,
        };
        command.SetAction(parsed =>
        {
            string text = parsed.GetValue(prompt)!;
            if (text.Length == 0)
                throw new UserError("--prompt: the text is empty.");
            if (parsed.GetValue(topP) > 1)
                throw new UserError("--top-p: a probability is at most 1.");
            double heat = parsed.GetValue(temperature);
            var options = new GenerationOptions
            {
                MaxNewTokens = parsed.GetValue(tokens),
                DoSample = heat > 0,
                Temperature = heat > 0 ? heat : 1,
                TopK = parsed.GetValue(topK),
                TopP = parsed.GetValue(topP),
                Seed = parsed.GetValue(seed),
            };
            torch.Device where = Devices.Choose(parsed.GetValue(device));
            using var loaded = LoadedModel.From(parsed.GetValue(checkpoint)!, where);
            TextGeneration.Stream(loaded.Model, loaded.Tokenizer, text, options, where, Console.Out, stop);
            return 0;
        });
        return command;
    }
}
